//! `monosem reproduce`, `monosem node` and `monosem report`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use monosem_assets::Assets;
use monosem_graph::{Graph, NodeRecord, RunOptions, Store, Summary};
use monosem_report::{
    CaseStudy, Circuit, Extras, FeatureExample, NodeInfo, Provenance, ResultRow, read_case_studies, read_circuits,
    read_features, read_results, render, write_case_studies, write_circuits, write_features, write_results,
};

use super::graph::{of, print_plan};
use crate::cli::{HowArgs, NodeArgs, Reproduce, RunArgs};
use crate::console::Console;
use crate::output::{note, say};
use crate::profile::{self, Loaded};
use crate::{device, exit, interrupt, nodes};

/// Every number of a run, in the run's folder.
const RESULTS: &str = "results.json";

/// The folder of circuits in the DOT language of Graphviz.
const GRAPHS: &str = "circuits";

/// What the report needs besides: profile, nodes and their timings.
const RUN: &str = "run.json";

/// Runs a profile and writes its report.
pub(crate) fn reproduce(args: &Reproduce) -> Result<u8> {
    device::choose(args.how.device)?;
    let loaded = profile::load(&args.run.profile)?;
    let assets = Assets::from_env()?;
    let graph = of(&loaded, &assets)?;
    let root = args.run.out.join(&loaded.name);
    if args.dry_run {
        print_plan(&graph.plan(&Store::open_read_only(&root), &args.only)?)?;
        return Ok(exit::OK);
    }
    let store = Store::open(&root)?;
    let summary = run(&graph, &store, &args.how, &args.only)?;
    let page = write_report(&graph, &store, &loaded, &root, &summary.hits)?;
    conclude(&summary, &page)
}

/// Runs one node and what it needs, beside other processes that do the same.
pub(crate) fn node(args: &NodeArgs) -> Result<u8> {
    device::choose(args.how.device)?;
    let loaded = profile::load(&args.run.profile)?;
    let assets = Assets::from_env()?;
    let graph = of(&loaded, &assets)?;
    let store = Store::open_shared(args.run.out.join(&loaded.name))?;
    let summary = run(&graph, &store, &args.how, std::slice::from_ref(&args.name))?;
    if let Some(folder) = graph.node_dir(&store, &args.name) {
        say!("{}", folder.display());
    }
    Ok(code(&summary))
}

/// Writes the report of a run again.
pub(crate) fn report(args: &RunArgs) -> Result<u8> {
    let loaded = profile::load(&args.profile)?;
    let assets = Assets::from_env()?;
    let graph = of(&loaded, &assets)?;
    let root = args.out.join(&loaded.name);
    let store = Store::open_read_only(&root);
    let all: Vec<String> = graph.edges().iter().map(|(name, _)| (*name).to_owned()).collect();
    if all.iter().all(|name| graph.node_dir(&store, name).is_none()) {
        bail!("nothing of profile {:?} is done in {}: run `monosem reproduce` first", loaded.name, root.display());
    }
    let page = write_report(&graph, &store, &loaded, &root, &all)?;
    say!("{}", page.display());
    Ok(exit::OK)
}

fn run(graph: &Graph<'_>, store: &Store, how: &HowArgs, only: &[String]) -> Result<Summary> {
    let cancel = interrupt::listen()?;
    let options = RunOptions { only: only.to_vec(), jobs: how.jobs.into(), verify: how.verify };
    let console = Console::new();
    Ok(graph.run(store, &options, cancel, &|event| console.event(&event))?)
}

fn code(summary: &Summary) -> u8 {
    if !summary.interrupted.is_empty() || (summary.failed.is_empty() && !summary.skipped.is_empty()) {
        exit::INTERRUPTED
    } else if summary.is_complete() {
        exit::OK
    } else {
        exit::NODES_FAILED
    }
}

fn conclude(summary: &Summary, page: &Path) -> Result<u8> {
    for (name, error) in &summary.failed {
        note!("failed: {name}: {error}");
    }
    if !summary.skipped.is_empty() {
        note!("not run: {}", summary.skipped.join(", "));
    }
    let code = code(summary);
    if code == exit::INTERRUPTED {
        note!("stopped; the same command goes on from there");
    }
    note!("{} nodes ran, {} were done before, in {:.0} s", summary.finished.len(), summary.hits.len(), summary.seconds);
    say!("{}", page.display());
    Ok(code)
}

/// Puts the graphs in the DOT language beside the report, where they are looked for.
fn copy_graphs(node: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make the folder {}", to.display()))?;
    for entry in std::fs::read_dir(node).with_context(|| format!("cannot read the folder {}", node.display()))? {
        let from = entry?.path();
        if let Some(name) = from.file_name().filter(|_| from.extension().is_some_and(|e| e == "dot")) {
            // Beside its place and renamed, so that a reader never sees half of it.
            let mut part = name.to_os_string();
            part.push(".part");
            let (part, place) = (to.join(part), to.join(name));
            let copied = std::fs::copy(&from, &part).and_then(|_| std::fs::rename(&part, &place));
            copied.with_context(|| format!("cannot copy {} to {}", from.display(), place.display()))?;
        }
    }
    Ok(())
}

/// Collects the results of all finished nodes into `results.json`, and makes figures and page from it. Returns the page's path.
fn write_report(graph: &Graph<'_>, store: &Store, loaded: &Loaded, root: &Path, hits: &[String]) -> Result<PathBuf> {
    let mut rows: Vec<ResultRow> = Vec::new();
    let mut infos = Vec::new();
    let mut features: Vec<FeatureExample> = Vec::new();
    let (mut circuits, mut case_studies): (Vec<Circuit>, Vec<CaseStudy>) = (Vec::new(), Vec::new());
    let mut missing = Vec::new();
    let graphs = root.join(GRAPHS);
    if graphs.is_dir() {
        // Those of another profile's settings would stay.
        std::fs::remove_dir_all(&graphs).with_context(|| format!("cannot remove {}", graphs.display()))?;
    }
    for (name, _) in graph.edges() {
        let Some(folder) = graph.node_dir(store, name) else {
            missing.push(name);
            continue;
        };
        let record = NodeRecord::read(&folder)?;
        let file = folder.join(nodes::ROWS);
        let own = if file.is_file() { read_results(&file)? } else { Vec::new() };
        let file = folder.join(nodes::FEATURES);
        if file.is_file() {
            features.extend(read_features(&file)?);
        }
        let file = folder.join(nodes::CIRCUITS);
        if file.is_file() {
            circuits.extend(read_circuits(&file)?);
            copy_graphs(&folder, &graphs)?;
        }
        let file = folder.join(nodes::CASE_STUDIES);
        if file.is_file() {
            case_studies.extend(read_case_studies(&file)?);
        }
        let mut experiments: Vec<String> = own.iter().map(|row| row.experiment.clone()).collect();
        experiments.sort_unstable();
        experiments.dedup();
        rows.extend(own);
        let inside = folder.strip_prefix(root).unwrap_or(&folder);
        infos.push(NodeInfo {
            name: name.to_owned(),
            key: record.key,
            seconds: record.seconds,
            cached: hits.iter().any(|hit| hit == name),
            folder: inside.display().to_string(),
            sources: record.deps.into_keys().chain(record.sources.into_keys()).collect(),
            experiments,
        });
    }
    let mut notes = loaded.profile.notes.clone();
    if !missing.is_empty() {
        notes.insert(
            0,
            format!("This run is not complete: {} of its nodes are missing ({}).", missing.len(), missing.join(", ")),
        );
    }
    let language = loaded.profile.language.as_ref();
    let provenance = Provenance {
        title: format!("monosem: {}", loaded.name),
        profile: loaded.name.clone(),
        profile_toml: loaded.toml.clone(),
        model: language.map(|l| l.model.to_string()).unwrap_or_default(),
        text: language.map(|l| l.text.to_string()).unwrap_or_default(),
        nodes: infos,
        version: env!("CARGO_PKG_VERSION").into(),
        notes,
    };
    let results = root.join(RESULTS);
    write_results(&results, &rows)?;
    write_features(&root.join(nodes::FEATURES), &features)?;
    write_circuits(&root.join(nodes::CIRCUITS), &circuits)?;
    write_case_studies(&root.join(nodes::CASE_STUDIES), &case_studies)?;
    let run = root.join(RUN);
    let text = serde_json::to_string_pretty(&provenance)? + "\n";
    std::fs::write(&run, text).with_context(|| format!("cannot write {}", run.display()))?;
    // From the file, not from memory: the page shows what the file holds.
    let extras = Extras { features: &features, circuits: &circuits, case_studies: &case_studies };
    render(&read_results(&results)?, extras, &provenance)?.write(root)?;
    Ok(root.join("report.html"))
}
