//! `monosem graph` and `monosem profiles`.

use anyhow::{Result, bail};
use monosem_assets::Assets;
use monosem_graph::{Graph, Planned, State, Store};

use crate::cli::{GraphArgs, GraphFormat, RunArgs};
use crate::output::{self, say};
use crate::profile::{self, Loaded};
use crate::{exit, nodes, sources};

/// Lists the profiles that come with the program.
pub(crate) fn profiles() -> Result<u8> {
    for (name, description) in profile::embedded() {
        say!("{name:12} {description}");
    }
    Ok(exit::OK)
}

/// Shows the graph of a profile.
pub(crate) fn graph(args: &GraphArgs) -> Result<u8> {
    let loaded = profile::load(&args.run.profile)?;
    let assets = Assets::from_env()?;
    let graph = of(&loaded, &assets)?;
    match args.format {
        GraphFormat::Text => print_plan(&graph.plan(&Store::open_read_only(args.run.out.join(&loaded.name)), &[])?)?,
        GraphFormat::Json => {
            let plan = graph.plan(&Store::open_read_only(args.run.out.join(&loaded.name)), &[])?;
            say!("{}", serde_json::to_string_pretty(&plan)?);
        }
        GraphFormat::Dot => output::write(format_args!("{}", graph.to_dot()))?,
        GraphFormat::Snakemake => output::write(format_args!("{}", snakemake(&graph, &args.run, &loaded)?))?,
    }
    Ok(exit::OK)
}

/// The graph of a loaded profile.
pub(crate) fn of<'a>(loaded: &'a Loaded, assets: &'a Assets) -> Result<Graph<'a>> {
    Ok(Graph::new(nodes::of_profile(&loaded.profile, assets), sources::LOCK_HASH.into())?)
}

/// A line a node: how it stands, its name and key, and what it needs.
pub(crate) fn print_plan(plan: &[Planned]) -> Result<()> {
    for node in plan {
        let state = match node.state {
            State::Hit => "done",
            State::Missing => "to run",
            State::Stale => "changed",
            State::Partial => "begun",
        };
        say!("{state:8} {:48} {}  {}", node.name, &node.key[..12], node.deps.join(" "));
    }
    Ok(())
}

/// The graph as a Snakemake workflow: each node one `monosem node` call on a shared folder, its record the file that says it is done.
fn snakemake(graph: &Graph<'_>, run: &RunArgs, loaded: &Loaded) -> Result<String> {
    let root = run.out.join(&loaded.name);
    let record = |name: &str| match graph.folder_name(name) {
        Some(folder) => Ok(format!("{}/nodes/{folder}/node.json", root.display())),
        None => bail!("no node {name:?}"),
    };
    let quote = |text: &str| format!("{text:?}");
    let mut rules = String::new();
    let mut all = Vec::new();
    for (i, (name, deps)) in graph.edges().into_iter().enumerate() {
        let inputs = deps.iter().map(|dep| record(dep).map(|r| quote(&r))).collect::<Result<Vec<_>>>()?;
        let output = quote(&record(name)?);
        let command = format!("monosem node {name} --profile {} --out {}", run.profile, run.out.display());
        // A braced word would be a wildcard to Snakemake.
        let command = quote(&command.replace('{', "{{").replace('}', "}}"));
        rules += &format!(
            "\nrule node_{i}:  # {name}\n    input: {}\n    output: {output}\n    shell: {command}\n",
            inputs.join(", ")
        );
        all.push(output);
    }
    let header = format!("# The experiment graph of profile {}; run `monosem report` at the end.\n", loaded.name);
    Ok(format!("{header}rule all:\n    input: {}\n{rules}", all.join(",\n        ")))
}
