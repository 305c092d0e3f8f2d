//! Writes documents of the toy language, one JSON object with the field `text` a line:
//! `cargo run -p monosem-corpus --example toy_text -- toy.jsonl 60000 1` (file, documents, seed).

use std::path::Path;

use monosem_corpus::toy::write_documents;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, documents, seed] = arguments.as_slice() else {
        return Err("expected three arguments: the file to write, how many documents, and the seed".into());
    };
    write_documents(Path::new(file), documents.parse()?, seed.parse()?)?;
    Ok(())
}
