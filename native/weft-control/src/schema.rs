//! `schema.json`: every method, event and type as JSON Schema (draft 2020-12).
//!
//! Must always hold: the document depends on nothing but the types (maps are ordered), so that a change of it is
//! a change of the API.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::types::{ErrorBody, Event};
use crate::{holder, methods};

/// The whole API of `weftd` as one document.
#[must_use]
pub fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut methods = Map::new();
    methods::each_method(&mut generator, |name, sentence, params, answer| {
        let method = json!({ "description": sentence, "params": params, "result": answer });
        methods.insert(name.to_owned(), method);
    });
    let event = generator.subschema_for::<Event>();
    let error = generator.subschema_for::<ErrorBody>();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The control socket of weftd",
        "methods": methods,
        "event": event,
        "error": error,
        "$defs": generator.take_definitions(true),
    })
}

/// The holder's methods as a document. It has no events.
#[must_use]
pub fn holder_document() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut methods = Map::new();
    holder::each_method(&mut generator, |name, sentence, params, answer| {
        let method = json!({ "description": sentence, "params": params, "result": answer });
        methods.insert(name.to_owned(), method);
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The control socket of weft-holder",
        "methods": methods,
        "$defs": generator.take_definitions(true),
    })
}

/// The text of `schema.json`.
#[must_use]
pub fn text() -> String {
    format!("{:#}\n", document())
}
