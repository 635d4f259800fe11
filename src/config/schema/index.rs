//! The index of `docs/configuration.md`: a row for each key. Its text comes with the binary.

const PAGE: &str = include_str!("../../../docs/configuration.md");

/// One row, as written.
pub(super) struct Row {
    pub(super) key: &'static str,
    /// Values, default, what it is.
    cells: [&'static str; 3],
}

impl Row {
    /// For a person who points at the key. `values` is made from the limits, so that it is never older.
    pub(super) fn description(&self, values: &str) -> String {
        let [_, default, what] = self.cells;
        let mut text = format!("{}.", without_links(what));
        // The keys of a section speak for themselves.
        if values != "section" {
            text.push_str(&format!(" Values: {values}."));
        }
        if !default.is_empty() {
            text.push_str(&format!(" Default: {default}."));
        }
        text
    }

    #[cfg(test)]
    pub(super) fn values_and_default(&self) -> (&str, &str) {
        let [values, default, _] = self.cells;
        (values, default)
    }
}

/// Every row that begins with a key in backticks, up to the end of the first table.
pub(super) fn rows() -> Vec<Row> {
    let lines = PAGE.lines().skip_while(|line| !line.starts_with("| key |"));
    let table = lines.take_while(|line| line.starts_with('|'));
    table.filter_map(row).collect()
}

fn row(line: &'static str) -> Option<Row> {
    let mut cells = line.split('|').skip(1).map(str::trim);
    let key = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
    Some(Row {
        key,
        cells: [cells.next()?, cells.next()?, cells.next()?],
    })
}

/// `[text](target)` becomes `text`; what only leads elsewhere, behind a colon, goes.
fn without_links(text: &str) -> String {
    let text = text.split(": [below]").next().unwrap_or(text);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        let Some((label, after)) = link.split_once("](") else {
            break;
        };
        plain.push_str(before);
        plain.push_str(label);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    plain + rest
}
