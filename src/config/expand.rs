//! `${NAME}`, `${NAME:-default}` and `$$` inside one scalar. Pure: the environment is a function.
//!
//! Expansion comes after YAML parsing, so that no value of a variable can change the structure.

/// Why a scalar could not be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExpandError {
    #[error("the environment variable `{0}` is not set")]
    Unset(String),
    #[error("`${{` has no closing brace")]
    Unclosed,
    #[error("`{}` is not the name of an environment variable", crate::units::shorten(.0))]
    BadName(String),
    #[error("`${{` stands inside the default of another variable")]
    Nested,
    #[error("a lone `$` has no meaning")]
    LoneDollar,
}

impl ExpandError {
    /// How to mend it.
    pub(super) fn remedy(&self) -> String {
        match self {
            Self::Unset(name) => format!("set it, or give a default: ${{{name}:-value}}"),
            Self::Unclosed => "close it with }, or write $$ for a dollar".to_owned(),
            Self::BadName(_) => {
                "use letters, digits and `_`, and put a default after `:-`".to_owned()
            }
            Self::Nested => "use a plain text as the default".to_owned(),
            Self::LoneDollar => "write $$ for a dollar, or ${NAME} for a variable".to_owned(),
        }
    }
}

/// Expands one scalar. As in the shell, `:-` also replaces a variable that is set but empty.
pub(super) fn expand(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (variable, after) = after.split_once('}').ok_or(ExpandError::Unclosed)?;
            expanded.push_str(&lookup(variable, env)?);
            rest = after;
        } else {
            return Err(ExpandError::LoneDollar);
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Escapes a text so that [`expand`] gives it back.
pub(super) fn escape(text: &str) -> String {
    text.replace('$', "$$")
}

fn lookup(variable: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, ExpandError> {
    let (name, default) = match variable.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (variable, None),
    };
    if !is_variable_name(name) {
        return Err(ExpandError::BadName(name.to_owned()));
    }
    match (env(name), default) {
        (_, Some(default)) if default.contains("${") => Err(ExpandError::Nested),
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(ExpandError::Unset(name.to_owned())),
    }
}

/// A POSIX name. The check also keeps `=` and NUL away from `getenv(3)`.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("9000".to_owned()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("${PORT}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn expands_like_the_shell() {
        for (text, expected) in [
            ("plain", "plain"),
            ("1.2.3.4:${PORT}", "1.2.3.4:9000"),
            ("${PORT}${PORT}", "90009000"),
            ("${NONE:-a:-b}", "a:-b"),
            ("${NONE:-}", ""),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY}", ""),
            ("$${PORT}", "${PORT}"),
            // A value is not expanded again.
            ("${DOLLAR}", "${PORT}"),
            ("$$$$", "$$"),
        ] {
            assert_eq!(expand(text, &env), Ok(expected.to_owned()), "{text}");
        }
        for (text, error) in [
            ("${NONE}", ExpandError::Unset("NONE".to_owned())),
            ("${PORT", ExpandError::Unclosed),
            ("${}", ExpandError::BadName(String::new())),
            ("${1A}", ExpandError::BadName("1A".to_owned())),
            ("${PORT:9}", ExpandError::BadName("PORT:9".to_owned())),
            ("${NONE:-${PORT}}", ExpandError::Nested),
            ("$PORT", ExpandError::LoneDollar),
            ("a$", ExpandError::LoneDollar),
        ] {
            assert_eq!(expand(text, &env), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn escaped_text_comes_back(text in any::<String>()) {
            prop_assert_eq!(expand(&escape(&text), &env), Ok(text));
        }
    }
}
