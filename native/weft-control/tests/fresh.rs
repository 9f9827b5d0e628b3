//! The committed files that are made from the types are what the types make.

use std::fs;
use std::path::Path;

use weft_control::{schema, typescript};

fn committed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn schema_json_is_fresh() {
    assert!(committed("schema.json") == schema::text(), "schema.json is not fresh: run `npm run generate`");
}

#[test]
fn daemon_gen_ts_is_fresh() {
    let text = typescript::text(&schema::document());
    let path = "../../src/core/wire/daemon.gen.ts";
    assert!(committed(path) == text, "daemon.gen.ts is not fresh: run `npm run generate`");
}

#[test]
fn the_holders_files_are_fresh() {
    let document = schema::holder_document();
    assert!(committed("schema-holder.json") == format!("{document:#}\n"), "schema-holder.json is not fresh");
    let text = typescript::holder_text(&document);
    assert!(
        committed("../../src/core/wire/holder.gen.ts") == text,
        "holder.gen.ts is not fresh: run `npm run generate`"
    );
}
