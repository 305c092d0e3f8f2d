//! One file over HTTP: resumed, retried, checked, and renamed into place only when whole.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::AssetError;
use crate::http::{Failure, Head, Http, Message, Request};
use crate::hub::HubConfig;
use crate::progress::Reporter;
use crate::store::{create_folder, rename, sha256_file, write_atomically};

/// What is to be fetched, and the words for the errors about it.
pub(crate) struct Job<'a> {
    pub(crate) url: Url,
    pub(crate) target: PathBuf,
    /// The file's name inside its repository.
    pub(crate) file: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) remedy: &'a str,
}

/// What is known about a `.part` file; kept beside it so that another process can go on with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PartInfo {
    etag: Option<String>,
    sha256: Option<String>,
    total: Option<u64>,
}

impl PartInfo {
    fn of(head: &Head) -> Self {
        Self { etag: head.etag.clone(), sha256: head.sha256.clone(), total: head.total }
    }

    /// The tag that `If-Range` accepts: a strong one.
    fn strong_tag(&self) -> Option<String> {
        self.etag.clone().filter(|tag| tag.starts_with('"'))
    }

    /// Whether bytes fetched now belong to the same file.
    fn agrees_with(&self, now: &Self) -> bool {
        self.etag == now.etag && self.sha256 == now.sha256 && self.total == now.total
    }
}

/// How one attempt ended.
enum Outcome {
    Whole(PartInfo),
    /// Worth another attempt; the server may have said when.
    Retry {
        why: String,
        after: Option<u64>,
    },
}

/// Fetches a file and returns the commit that the hub named, if it did.
///
/// # Errors
/// See [`AssetError`]; a failure that trying again cannot mend (401, 403, 404) is returned at once.
pub(crate) fn fetch(
    http: &Arc<Http>,
    config: &HubConfig,
    job: &Job<'_>,
    reporter: &mut Reporter<'_, '_>,
) -> Result<Option<String>, AssetError> {
    if let Some(parent) = job.target.parent() {
        create_folder(parent)?;
    }
    let part = Part::beside(&job.target);
    let mut commit = None;
    let (mut failures, mut furthest) = (0, part.len());
    loop {
        let (why, after) = match attempt(http, job, &part, &mut commit, reporter)? {
            Outcome::Whole(info) => match check(job, &part, &info, reporter)? {
                None => {
                    rename(&part.path, &job.target)?;
                    let _ = fs::remove_file(&part.info);
                    return Ok(commit);
                }
                Some(why) => {
                    furthest = furthest.max(part.len());
                    part.remove();
                    if failures + 1 >= config.attempts {
                        let asset = reporter.asset.clone();
                        return Err(AssetError::Corrupt { asset, file: job.file.into(), why });
                    }
                    (why, None)
                }
            },
            Outcome::Retry { why, after } => (why, after),
        };
        // A bad line that moves forward between its cuts gets there in the end.
        if part.len() > furthest {
            furthest = part.len();
            failures = 0;
        }
        failures += 1;
        if failures >= config.attempts {
            return Err(AssetError::Network {
                asset: reporter.asset.clone(),
                file: job.file.into(),
                why: format!("{why} (after {} attempts)", config.attempts),
                remedy: job.remedy.into(),
            });
        }
        let wait = match after {
            Some(seconds) => Duration::from_secs(seconds),
            None => jittered(config.backoff.saturating_mul(1 << (failures - 1).min(16))),
        };
        reporter.pause(wait.min(config.max_wait), &format!("{}: {why}; trying again", job.file))?;
    }
}

/// Between half of and the whole wait: clients that failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0u8) as f64 / u64::MAX as f64;
    wait.mul_f64(0.5 + 0.5 * random)
}

/// The file that grows beside the target, with what is known about it.
struct Part {
    path: PathBuf,
    info: PathBuf,
}

impl Part {
    fn beside(target: &Path) -> Self {
        let name = target.file_name().unwrap_or_default().display();
        let path = target.with_file_name(format!("{name}.part"));
        Self { info: target.with_file_name(format!("{name}.part.json")), path }
    }

    fn len(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    fn info(&self) -> Option<PartInfo> {
        serde_json::from_slice(&fs::read(&self.info).ok()?).ok()
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.info);
        let _ = fs::remove_file(&self.path);
    }
}

fn attempt(
    http: &Arc<Http>,
    job: &Job<'_>,
    part: &Part,
    commit: &mut Option<String>,
    reporter: &mut Reporter<'_, '_>,
) -> Result<Outcome, AssetError> {
    // Without a strong tag or a digest nothing would tell whether the rest belongs to the same file.
    let known = part.info().filter(|info| info.strong_tag().is_some() || info.sha256.is_some());
    let mut done = part.len();
    match &known {
        Some(info) if done > 0 && info.total == Some(done) => return Ok(Outcome::Whole(info.clone())),
        Some(info) if info.total.is_none_or(|total| done < total) => {}
        _ => {
            part.remove();
            done = 0;
        }
    }
    let if_range = known.as_ref().and_then(PartInfo::strong_tag);
    let receiver = http.start(Request { url: job.url.clone(), from: done, if_range });
    let mut current: Option<(PartInfo, File)> = None;
    loop {
        let total = current.as_ref().and_then(|(info, _)| info.total);
        reporter.tick(done, total, job.file)?;
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(Outcome::Retry { why: "the connection was lost".into(), after: None });
            }
            Ok(Message::Head(head)) => {
                *commit = commit.take().or_else(|| head.commit.clone());
                let info = PartInfo::of(&head);
                if head.start > 0 && !known.as_ref().is_some_and(|known| known.agrees_with(&info)) {
                    part.remove();
                    return Ok(Outcome::Retry { why: "the file changed on the server".into(), after: Some(0) });
                }
                done = head.start;
                current = Some((info.clone(), part.open(&info, head.start)?));
            }
            Ok(Message::Chunk(bytes)) => {
                if let Some((_, file)) = &mut current {
                    file.write_all(&bytes).map_err(AssetError::io("write", &part.path))?;
                    done += bytes.len() as u64;
                }
            }
            Ok(Message::End) => {
                if let Some((info, file)) = current {
                    file.sync_all().map_err(AssetError::io("write", &part.path))?;
                    return Ok(Outcome::Whole(info));
                }
            }
            Ok(Message::Failed(failure)) => return judge(failure, job, part, reporter),
        }
    }
}

impl Part {
    fn open(&self, info: &PartInfo, start: u64) -> Result<File, AssetError> {
        if start == 0 {
            self.remove();
            let text = serde_json::to_vec(info).map_err(|e| AssetError::io("write", &self.info)(e.into()))?;
            write_atomically(&self.info, &text)?;
        }
        File::options().create(true).append(true).open(&self.path).map_err(AssetError::io("create", &self.path))
    }
}

/// Which failures another attempt may mend.
fn judge(failure: Failure, job: &Job<'_>, part: &Part, reporter: &Reporter<'_, '_>) -> Result<Outcome, AssetError> {
    let (asset, file) = (reporter.asset.clone(), job.file.to_owned());
    match failure {
        Failure::Transport(why) => Ok(Outcome::Retry { why, after: None }),
        Failure::Fatal(why) => Err(AssetError::Network { asset, file, why, remedy: job.remedy.into() }),
        Failure::Status { code: 404, hub_error, .. } => {
            let why = match hub_error.as_deref() {
                Some("RepoNotFound") => "the hub has no such repository",
                Some("RevisionNotFound") => "the repository has no such revision",
                _ => "the repository has no such file",
            };
            Err(AssetError::NotFound { asset, file, revision: job.revision.into(), why: why.into() })
        }
        Failure::Status { code: status @ (401 | 403), hub_error, .. } => {
            let why = match hub_error.as_deref() {
                Some("GatedRepo") => "the repository is gated: accept its terms on the hub, then set HF_TOKEN",
                Some("RepoNotFound") => {
                    "the repository does not exist or is private: check its name, or set HF_TOKEN to a token that may \
                     read it"
                }
                _ => {
                    "the repository may be private, gated or missing: check its name, accept its terms on the hub, and \
                     set HF_TOKEN to a token that may read it"
                }
            };
            Err(AssetError::Denied { asset, file, status, why: why.into() })
        }
        Failure::Status { code: 416, .. } => {
            part.remove();
            Ok(Outcome::Retry { why: "the server has fewer bytes than were fetched".into(), after: None })
        }
        Failure::Status { code, retry_after, .. } if code == 408 || code == 425 || code == 429 || code >= 500 => {
            Ok(Outcome::Retry { why: format!("the server answered {code}"), after: retry_after })
        }
        Failure::Status { code, .. } => {
            let why = format!("the server answered {code}");
            Err(AssetError::Network { asset, file, why, remedy: job.remedy.into() })
        }
    }
}

/// `None` if the file is what was announced, else what is wrong with it.
fn check(
    job: &Job<'_>,
    part: &Part,
    info: &PartInfo,
    reporter: &mut Reporter<'_, '_>,
) -> Result<Option<String>, AssetError> {
    let bytes = part.len();
    if let Some(total) = info.total.filter(|total| *total != bytes) {
        return Ok(Some(format!("it has {bytes} bytes, the server announced {total}")));
    }
    if let Some(expected) = &info.sha256 {
        let found = sha256_file(&part.path, reporter)?;
        if found != *expected {
            return Ok(Some(format!("its sha256 is {found}, the hub announced {expected}")));
        }
    }
    // A login page of the local network comes with status 200 and the right length.
    if job.file.ends_with(".json") {
        let file = File::open(&part.path).map_err(AssetError::io("read", &part.path))?;
        let parsed = serde_json::from_reader::<_, serde::de::IgnoredAny>(std::io::BufReader::new(file));
        return Ok(parsed.err().map(|error| format!("it is not JSON ({error})")));
    }
    if job.file.ends_with(".safetensors") {
        let mut header = [0; 8];
        let mut file = File::open(&part.path).map_err(AssetError::io("read", &part.path))?;
        let fits = file.read_exact(&mut header).is_ok() && u64::from_le_bytes(header) <= bytes.saturating_sub(8);
        return Ok((!fits).then(|| "it is not a safetensors file".to_owned()));
    }
    Ok(None)
}
