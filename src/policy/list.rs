//! Reader of list files: one network per line.
//!
//! ```text
//! # offices
//! 192.0.2.0/24
//! 2001:db8::/32   # and the new one
//! ```
//!
//! All errors come back at once, each with its line and a remedy. What the file may cost is bounded,
//! whatever is in it.

use std::io::{self, Read};
use std::str;

use crate::units::network::{Network, NetworkError};
use crate::units::shorten;

/// Largest list file, in bytes.
pub const LIST_BYTES_MAX: usize = 64 << 20;
/// Most networks in one list.
pub const LIST_NETWORKS_MAX: usize = 1_000_000;
/// Errors told; of the others only the number.
pub const LIST_ERRORS_MAX: usize = 50;

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// Larger than [`LIST_BYTES_MAX`].
    #[error("is larger than {LIST_BYTES_MAX} bytes")]
    TooLarge,
    /// More networks than [`LIST_NETWORKS_MAX`].
    #[error("holds more than {LIST_NETWORKS_MAX} networks")]
    TooMany,
    /// Lines that are not networks.
    #[error("has {} lines that are not a network", .0.total)]
    Lines(LineErrors),
}

/// The lines that are not networks, in order.
#[derive(Debug)]
pub struct LineErrors {
    /// The first [`LIST_ERRORS_MAX`] of them; never empty.
    pub shown: Vec<LineError>,
    /// How many there are.
    pub total: usize,
}

/// One line that is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct LineError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: LineProblem,
}

/// What is wrong with one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// One word that is not a network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Something after the network that is not a comment.
    #[error("`{}` is more than one network", shorten(.0))]
    ManyWords(String),
    /// Not text.
    #[error("is not UTF-8")]
    NotText,
}

impl ListError {
    /// What to do about it; for [`ListError::Lines`], each line has a remedy of its own.
    pub fn remedy(&self) -> &'static str {
        match self {
            ListError::Read(_) => "check the path and that this user may read the file",
            ListError::TooLarge => "is it the right file? Remove comments, or split the list",
            ListError::TooMany => "join neighbouring networks, or split the list",
            ListError::Lines(_) => "write one network per line; comments begin with #",
        }
    }
}

impl LineError {
    /// How to write it instead.
    pub fn remedy(&self) -> String {
        match &self.problem {
            LineProblem::Network(error) => error.remedy(),
            LineProblem::ManyWords(_) => {
                "write one network per line; comments begin with #".to_owned()
            }
            LineProblem::NotText => "save the file as UTF-8, without control bytes".to_owned(),
        }
    }
}

/// Reads a list file to its end: one network per line, blank lines, comments from `#` to the end of
/// the line. The networks come in the file's order.
///
/// # Errors
/// Every line that is not a network; or the one reason for which the list was not read at all.
pub fn read(source: impl Read) -> Result<Vec<Network>, ListError> {
    let mut bytes = Vec::new();
    source
        .take(LIST_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(ListError::Read)?;
    if bytes.len() > LIST_BYTES_MAX {
        return Err(ListError::TooLarge);
    }
    // Some editors put a byte order mark before the first line.
    parse(bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes))
}

fn parse(bytes: &[u8]) -> Result<Vec<Network>, ListError> {
    let mut networks = Vec::new();
    let mut errors = LineErrors {
        shown: Vec::new(),
        total: 0,
    };
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        match parse_line(line) {
            Ok(Some(_)) if networks.len() == LIST_NETWORKS_MAX => return Err(ListError::TooMany),
            Ok(Some(network)) => networks.push(network),
            Ok(None) => {}
            Err(problem) => {
                errors.total += 1;
                if errors.shown.len() < LIST_ERRORS_MAX {
                    let line = index + 1;
                    errors.shown.push(LineError { line, problem });
                }
            }
        }
    }
    if errors.total > 0 {
        return Err(ListError::Lines(errors));
    }
    Ok(networks)
}

fn parse_line(line: &[u8]) -> Result<Option<Network>, LineProblem> {
    // Cut before looking at the encoding: a comment may be in any.
    let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    let text = str::from_utf8(line)
        .map_err(|_| LineProblem::NotText)?
        .trim();
    if text.is_empty() {
        return Ok(None);
    }
    if text.contains(char::is_whitespace) {
        return Err(LineProblem::ManyWords(text.to_owned()));
    }
    Ok(Some(text.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(result: Result<Vec<Network>, ListError>) -> LineErrors {
        match result {
            Err(ListError::Lines(lines)) => lines,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_networks_between_comments_and_blank_lines() {
        let file = b"\xEF\xBB\xBF# offices\r\n10.0.0.0/8\r\n\n \t\n2001:db8::/32 # new\n\
            #\xFF other encodings\n::1#none\n127.0.0.1";
        let networks = read(&file[..]).expect("a list");
        let texts: Vec<_> = networks.iter().map(Network::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/8", "2001:db8::/32", "::1", "127.0.0.1"]);
        assert_eq!(read(&b""[..]).expect("an empty list"), []);
    }

    #[test]
    fn tells_all_errors_with_their_lines() {
        let file = b"10.0.0.0/8\n10.0.0.1/8\n\n1.10.16.0/20 ; SBL256894\n\xFF\n127.0.0.1\n";
        let errors = lines(read(&file[..]));
        let texts: Vec<_> = errors.shown.iter().map(LineError::to_string).collect();
        let expected = [
            "line 2: `10.0.0.1/8` has bits set after its first 8 bits",
            "line 4: `1.10.16.0/20 ; SBL256894` is more than one network",
            "line 5: is not UTF-8",
        ];
        assert_eq!(texts, expected);
        assert!(errors.shown[0].remedy().contains("10.0.0.0/8"));
        assert!(errors.shown[1].remedy().contains('#'));
    }

    #[test]
    fn is_bounded() {
        let errors = lines(read("x\n".repeat(LIST_ERRORS_MAX + 7).as_bytes()));
        assert_eq!(
            (errors.shown.len(), errors.total),
            (LIST_ERRORS_MAX, LIST_ERRORS_MAX + 7)
        );

        let mut most = "::\n".repeat(LIST_NETWORKS_MAX);
        assert_eq!(
            read(most.as_bytes()).expect("just enough").len(),
            LIST_NETWORKS_MAX
        );
        most.push_str("::1");
        assert!(matches!(read(most.as_bytes()), Err(ListError::TooMany)));

        let comment = io::repeat(b'#');
        assert_eq!(
            read(comment.take(LIST_BYTES_MAX as u64)).expect("just enough"),
            []
        );
        assert!(matches!(read(io::repeat(b'#')), Err(ListError::TooLarge)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_have_errors(bytes: Vec<u8>) {
            if let Err(ListError::Lines(errors)) = read(&bytes[..]) {
                prop_assert!(!errors.shown.is_empty());
                prop_assert!(errors.shown.iter().all(|error| !error.remedy().is_empty()));
            }
        }
    }
}
