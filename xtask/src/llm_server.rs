//! `cargo xtask test --with-llm-server`: the tests that need a real language-model server, against one that is set up, started and stopped for them.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use xshell::{Shell, cmd};

use crate::{places, status};

/// llama.cpp behind an OpenAI-compatible server. Pip builds it from source, which takes some minutes.
const PACKAGE: &str = "llama-cpp-python[server]==0.3.36";

/// The longest wait for the server to load its model.
const PATIENCE: Duration = Duration::from_secs(120);

/// The test files whose ignored tests need the server.
const TESTS: [&str; 2] = ["real_server", "llm_server"];

/// The model file is named by `model`, as `monosem assets fetch` knows it.
pub(crate) fn test(sh: &Shell, model: &str) -> anyhow::Result<ExitCode> {
    let python = install(sh)?;
    let file = fetch(model)?;
    let server = Server::start(&python, &file)?;
    // All of the workspace, whose features are those that were built.
    let tests = TESTS.iter().flat_map(|test| ["--test", test]);
    let mut command =
        Command::from(cmd!(sh, "cargo test --workspace {tests...} -- --ignored --test-threads 1 --nocapture"));
    command.env("MONOSEM_TEST_LLM_URL", format!("http://127.0.0.1:{}/v1", server.port));
    command.env("MONOSEM_TEST_LLM_MODEL", model).env("MONOSEM_TEST_LLM_FILE", &file);
    let code = status(command)?;
    if code != ExitCode::SUCCESS {
        eprintln!("what the server said: {}", server.log.display());
    }
    Ok(code)
}

/// The Python of an environment of its own in the target folder, with the server in it.
fn install(sh: &Shell) -> anyhow::Result<PathBuf> {
    let folder = places::target().join("llm-server");
    let python = folder.join("bin/python");
    let works = |python: &Path| {
        let mut command = Command::new(python);
        command.args(["-c", "import llama_cpp.server"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if works(&python) {
        return Ok(python);
    }
    eprintln!("setup: {PACKAGE}: not there; building it with pip into {} (some minutes)", folder.display());
    let make = cmd!(sh, "python3 -m venv {folder}").run();
    make.context(
        "no Python environment can be made; install python3-venv, or run the tests without --with-llm-server",
    )?;
    cmd!(sh, "{python} -m pip install --quiet {PACKAGE}").run().context("pip could not install the server")?;
    ensure!(works(&python), "{PACKAGE} is installed in {} and does not load", folder.display());
    Ok(python)
}

/// The file of a model, fetched where it is not there yet.
fn fetch(model: &str) -> anyhow::Result<PathBuf> {
    let output = Command::new(places::dev_binary("monosem")).args(["assets", "fetch", model]).output()?;
    ensure!(output.status.success(), "{model}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let said = String::from_utf8(output.stdout)?;
    let path = said.trim().strip_prefix(model).map(str::trim).context("`monosem assets fetch` names no file")?;
    Ok(PathBuf::from(path))
}

/// A server that ends with its owner.
struct Server {
    process: Child,
    port: u16,
    log: PathBuf,
}

impl Server {
    fn start(python: &Path, model: &Path) -> anyhow::Result<Self> {
        // Somebody else may take the port in between; then the server says so and ends.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = places::target().join("llm-server/server.log");
        let file = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(python);
        command.args(["-m", "llama_cpp.server", "--host", "127.0.0.1", "--n_ctx", "2048", "--logits_all", "true"]);
        command.args(["--port", &port.to_string(), "--model"]).arg(model);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = command.spawn().context("the server does not start")?;
        let mut server = Self { process, port, log };
        let started = Instant::now();
        while !server.answers() {
            if let Some(status) = server.process.try_wait()? {
                bail!("the server ended with {status}: see {}", server.log.display());
            }
            ensure!(started.elapsed() < PATIENCE, "the server does not answer: see {}", server.log.display());
            std::thread::sleep(Duration::from_millis(200));
        }
        eprintln!("setup: language-model server on port {port}, log in {}", server.log.display());
        Ok(server)
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
