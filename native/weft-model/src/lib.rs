//! Explicit-state checkers of the replication protocol (docs/model.md says what is checked and what that proves).
//!
//! Must always hold:
//! - every rule that the protocol claims to need has a mutation here that drops it, and a test that finds the
//!   counter-example (a checker that finds nothing when a rule is broken proves nothing when none is);
//! - the unbroken models are clean within the bounds that the tests name;
//! - nothing here is imported by the daemon: the models share the protocol's words with it, no code.

#![forbid(unsafe_code)]

/// The enumeration of a small model's mutations, and a list that a test compares with its cases.
macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A rule taken away.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[$doc])* $name,)*
        }

        impl Mutation {
            /// All of them.
            pub const ALL: &[Mutation] = &[$(Mutation::$name,)*];
        }
    };
}

/// The `broken` of a small model's cases: its configuration with one rule taken away. `$setup` is the model's variant of
/// [`cases::Setup`].
macro_rules! broken_cases {
    ($setup:ident) => {
        const fn broken(
            name: &'static str,
            rule: &'static str,
            config: Config,
            mutation: Mutation,
            expected: Expected,
        ) -> Case {
            Case::small(name, rule, Setup::$setup(Config { mutation: Some(mutation), ..config }), expected)
        }
    };
}

pub mod cases;
pub mod cbt;
pub mod claims;
pub mod core;
pub mod disk;
pub mod explore;
pub mod image;
pub mod lease;
pub mod liar;
mod mask;
pub mod pool;
pub mod register;
pub mod revert;
pub mod size;
pub mod snapshot;
pub mod trash;
