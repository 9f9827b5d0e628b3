//! Writes `native/weft-control/schema.json` and `src/core/wire/daemon.gen.ts`, and the same of the holder
//! (`npm run generate`).

use std::fs;
use std::io;
use std::path::Path;

use weft_control::{schema, typescript};

fn main() -> io::Result<()> {
    let room = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = schema::document();
    let wire = room.join("../../src/core/wire");
    fs::create_dir_all(&wire)?;
    fs::write(room.join("schema.json"), schema::text())?;
    fs::write(wire.join("daemon.gen.ts"), typescript::text(&document))?;
    let holder = schema::holder_document();
    fs::write(room.join("schema-holder.json"), format!("{holder:#}\n"))?;
    fs::write(wire.join("holder.gen.ts"), typescript::holder_text(&holder))
}
