//! The table of docs/scenarios.md, as the simulator needs it.

const DOCUMENT: &str = include_str!("../../../../docs/scenarios.md");

/// A scenario as the table has it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its number.
    pub number: &'static str,
    /// Its plot and outcome.
    pub title: &'static str,
    /// Its tests, as `file::name`.
    pub tests: Vec<&'static str>,
    /// Tested, or what it comes with.
    pub status: &'static str,
}

/// Every scenario.
pub fn rows() -> impl Iterator<Item = Row> {
    DOCUMENT.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split('|').map(str::trim);
        let (number, title, tests, status) = (cells.next()?, cells.next()?, cells.next()?, cells.next()?);
        let numbered = number.get(1..).is_some_and(|n| n.parse::<u8>().is_ok());
        let tests = tests.split('`').skip(1).step_by(2).collect();
        numbered.then_some(Row { number, title, tests, status })
    })
}

/// One of them; letters may be small.
pub(super) fn row(number: &str) -> Option<Row> {
    rows().find(|row| row.number.eq_ignore_ascii_case(number))
}
