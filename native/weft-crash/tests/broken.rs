//! Each rule of a pool, broken, is found: `cargo test -p weft-crash --features mutants --test broken`, part of `npm test`.

use weft_crash::gate::with_broken_rules;
use weft_proto::mutants::Broken;

#[test]
fn every_broken_rule_of_a_pool_is_found() {
    let shown = with_broken_rules(|mutation| Broken::rule(Some(mutation)), 0);
    for one in &shown {
        println!("{}: {}", one.name, one.by.as_deref().unwrap_or("nothing found"));
    }
    assert!(shown.iter().all(|one| one.by.is_some()), "{shown:?}");
}
