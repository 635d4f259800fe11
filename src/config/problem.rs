//! What is wrong with a configuration, for a person: where, what, and how to mend it.

use std::fmt;

/// Everything that is wrong with one configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct LoadError {
    source_name: String,
    problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the text; `None` where there is no text (a missing file, the command line).
    pub position: Option<Position>,
    /// Where in the structure, like `listeners.edge.bind`; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// How to mend it.
    pub remedy: String,
}

/// A place in a text; both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl LoadError {
    /// `problems` must not be empty: an error without a reason helps nobody.
    pub(super) fn new(source_name: &str, problems: Vec<Problem>) -> Self {
        assert!(!problems.is_empty(), "an error has at least one problem");
        Self {
            source_name: source_name.to_owned(),
            problems,
        }
    }

    /// The file's path, or what stands for it.
    pub fn source_name(&self) -> &str {
        &self.source_name
    }

    /// At least one, in the order of the text.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for LoadError {
    /// One problem per line, as `FILE:LINE:COLUMN: PATH: problem; remedy`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}", self.source_name)?;
            if let Some(Position { line, column }) = problem.position {
                write!(f, ":{line}:{column}")?;
            }
            if !problem.path.is_empty() {
                write!(f, ": {}", problem.path)?;
            }
            write!(f, ": {}; {}", problem.problem, problem.remedy)?;
        }
        Ok(())
    }
}
