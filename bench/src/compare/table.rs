//! The tables: aligned Markdown, so that a terminal and a README show the same.

use std::fmt::Write as _;

use super::bars::{Outcome, Verdict};
use super::peers::CORELAY;
use super::results::{Latency, Metric, Results, Sample};
use super::scenarios::{Contest, Scenario};
use super::statistics::Summary;

/// What stands where there is no figure.
const NOTHING: &str = "-";
/// What follows the name of a proxy whose load met errors.
const MARK: &str = " (!)";

/// Rows of cells under a header.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()],
        }
    }

    fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// The first column to the left, figures to the right.
    fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(3)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, cell) in row.iter().enumerate() {
                let wide = widths[column];
                let _ = if column == 0 {
                    write!(text, "| {cell:<wide$} ")
                } else {
                    write!(text, "| {cell:>wide$} ")
                };
            }
            text.push_str("|\n");
            if index == 0 {
                for (column, wide) in widths.iter().enumerate() {
                    let line = "-".repeat(wide - 1);
                    let _ = if column == 0 {
                        write!(text, "| :{line} ")
                    } else {
                        write!(text, "| {line}: ")
                    };
                }
                text.push_str("|\n");
            }
        }
        text
    }
}

/// Everything that one scenario told, under a headline.
pub(super) fn scenario(results: &Results, scenario: &Scenario) -> String {
    let mut text = format!("### {}: {}\n\n", scenario.name, scenario.what);
    if scenario.contest == Contest::OneAtATime {
        text.push_str(&memory(results, scenario.name).render());
    } else {
        text.push_str(&work(results, scenario).render());
        let peers = results.peers(scenario.name);
        for wait in [&LATENCY, &TAIL] {
            let has = |peer: &&str| results.summary(scenario.name, peer, wait.p50).is_some();
            if scenario.has_latency() && peers.iter().any(has) {
                text.push('\n');
                text.push_str(&waits(results, scenario.name, wait).render());
            }
        }
    }
    text.push_str(&errors(results, scenario.name));
    text
}

fn work(results: &Results, scenario: &Scenario) -> Table {
    let unit = scenario.unit;
    let mut table = Table::new(&[
        "proxy",
        unit.rate_label(),
        &format!("CPU {} (min-max)", unit.cpu_label()),
        "CPU / corelay (min-max)",
        "user %",
        &format!("machine {}", unit.cpu_label()),
        "/ direct",
        "RSS MiB",
        "threads",
        "iou-wrk",
        "switches vol/inv",
    ]);
    let name = scenario.name;
    for peer in results.peers(name) {
        let summary = |metric: Metric| results.summary(name, peer, metric);
        let ratio = |to: &str, metric: Metric| results.ratio(name, peer, to, metric);
        let most = |figure: fn(&Sample) -> u64| most(results, name, peer, figure);
        table.row(vec![
            marked(results, name, peer),
            median(summary(Sample::rate)),
            spread(summary(Sample::cpu)),
            spread(ratio(CORELAY, Sample::cpu)),
            summary(Sample::user_percent).map_or(NOTHING.into(), |s| format!("{:.0}", s.median)),
            median(summary(Sample::machine)),
            median(ratio("direct", Sample::machine)),
            most(|sample| sample.resident_bytes).map_or(NOTHING.into(), mebibytes),
            most(|sample| sample.threads).map_or(NOTHING.into(), |most| most.to_string()),
            most(|sample| sample.io_workers).map_or(NOTHING.into(), |most| most.to_string()),
            switches(results, name, peer),
        ]);
    }
    table
}

/// The most over the rounds; none of the control, which has no process.
fn most(results: &Results, name: &str, peer: &str, figure: fn(&Sample) -> u64) -> Option<u64> {
    let proxies = results.of(name, peer).filter(|sample| sample.threads > 0);
    proxies.map(figure).max()
}

fn switches(results: &Results, name: &str, peer: &str) -> String {
    if most(results, name, peer, |sample| sample.threads).is_none() {
        return NOTHING.to_owned();
    }
    let per_work = |metric: Metric| median(results.summary(name, peer, metric));
    format!(
        "{} / {}",
        per_work(Sample::voluntary),
        per_work(Sample::involuntary)
    )
}

/// What was waited for: a table of its own each.
struct Wait {
    label: &'static str,
    p50: Metric,
    p90: Metric,
    p99: Metric,
    of_all_rounds: fn(&Results, &'static str, &str) -> Option<Latency>,
}

const LATENCY: Wait = Wait {
    label: "latency, us",
    p50: Sample::p50,
    p90: Sample::p90,
    p99: Sample::p99,
    of_all_rounds: Results::latency_of_all_rounds,
};

const TAIL: Wait = Wait {
    label: "wait for the tail, us",
    p50: Sample::tail_p50,
    p90: Sample::tail_p90,
    p99: Sample::tail_p99,
    of_all_rounds: Results::tail_of_all_rounds,
};

fn waits(results: &Results, name: &'static str, wait: &Wait) -> Table {
    let mut table = Table::new(&[
        wait.label,
        "p50 (min-max)",
        "p50 / corelay",
        "p90",
        "p99 (min-max)",
        "p99 / corelay",
        "p99.9 of all",
        "max of all",
    ]);
    for peer in results.peers(name) {
        let summary = |metric: Metric| results.summary(name, peer, metric);
        let ratio = |metric: Metric| results.ratio(name, peer, CORELAY, metric);
        // A short round has too few operations for these: here all rounds are one.
        let all = (wait.of_all_rounds)(results, name, peer);
        let tail = |us: fn(Latency) -> f64| all.map_or(NOTHING.into(), |all| figure(us(all)));
        table.row(vec![
            marked(results, name, peer),
            spread(summary(wait.p50)),
            median(ratio(wait.p50)),
            median(summary(wait.p90)),
            spread(summary(wait.p99)),
            median(ratio(wait.p99)),
            tail(|all| all.p999_us),
            tail(|all| all.max_us),
        ]);
    }
    table
}

fn memory(results: &Results, name: &str) -> Table {
    let mut table = Table::new(&[
        "proxy",
        "connections",
        "anonymous B/connection (min-max)",
        "private B/connection",
        "/ corelay",
        "RSS MiB",
        "threads",
        "iou-wrk",
    ]);
    let whole =
        |summary: Option<Summary>| summary.map_or(NOTHING.into(), |s| format!("{:.0}", s.median));
    for peer in results.peers(name) {
        let summary = |metric: Metric| results.summary(name, peer, metric);
        let most = |figure: fn(&Sample) -> u64| most(results, name, peer, figure);
        let anonymous = summary(Sample::idle_anonymous);
        table.row(vec![
            marked(results, name, peer),
            most(|sample| sample.operations).map_or(NOTHING.into(), |most| most.to_string()),
            anonymous.map_or(NOTHING.into(), |s| {
                format!("{:.0} ({:.0}-{:.0})", s.median, s.min, s.max)
            }),
            whole(summary(Sample::idle_private)),
            median(results.ratio(name, peer, CORELAY, Sample::idle_anonymous)),
            most(|sample| sample.resident_bytes).map_or(NOTHING.into(), mebibytes),
            most(|sample| sample.threads).map_or(NOTHING.into(), |most| most.to_string()),
            most(|sample| sample.io_workers).map_or(NOTHING.into(), |most| most.to_string()),
        ]);
    }
    table
}

/// What the load met, in words; nothing if it met nothing.
fn errors(results: &Results, name: &str) -> String {
    let mut text = String::new();
    for peer in results.peers(name) {
        let errors = results.errors(name, peer);
        if !errors.is_empty() {
            let kinds: Vec<String> = errors
                .iter()
                .map(|(kind, count)| format!("{count} x {kind}"))
                .collect();
            let _ = writeln!(
                text,
                "\n(!) {peer}: errors of the load: {}",
                kinds.join(", ")
            );
        }
    }
    text
}

/// The bars under their headline.
pub(super) fn bars(outcomes: &[Outcome]) -> String {
    let mut table = Table::new(&[
        "bar",
        "scenario",
        "against",
        "must",
        "aim",
        "measured (min-max)",
        "verdict",
    ]);
    // Bars of scenarios that did not run would only be in the way.
    let has_run = |one: &&Outcome| one.measured.is_some() || one.verdict == Verdict::Miss;
    for outcome in outcomes.iter().filter(has_run) {
        let sign = if outcome.good_is_high { ">=" } else { "<=" };
        let height = |height: f64| format!("{sign} {height}");
        table.row(vec![
            outcome.what.to_owned(),
            outcome.scenario.to_owned(),
            outcome.against.clone().unwrap_or(NOTHING.into()),
            outcome.must.map_or(NOTHING.into(), height),
            height(outcome.aim),
            spread(outcome.measured),
            outcome.verdict.label().to_owned(),
        ]);
    }
    let count = |verdict| outcomes.iter().filter(|one| one.verdict == verdict).count();
    format!(
        "## Bars\n\nWithout a unit: Corelay / peer.\n\n{}\n{} reach the aim, {} the must, {} MISS, {} without a verdict\n",
        table.render(),
        count(Verdict::Aim),
        count(Verdict::Must),
        count(Verdict::Miss),
        count(Verdict::Unknown) + count(Verdict::Reported),
    )
}

fn marked(results: &Results, scenario: &str, peer: &str) -> String {
    let mark = if results.errors(scenario, peer).is_empty() {
        ""
    } else {
        MARK
    };
    format!("{peer}{mark}")
}

fn median(summary: Option<Summary>) -> String {
    summary.map_or(NOTHING.into(), |summary| figure(summary.median))
}

fn spread(summary: Option<Summary>) -> String {
    let text = |s: Summary| format!("{} ({}-{})", figure(s.median), figure(s.min), figure(s.max));
    summary.map_or(NOTHING.into(), text)
}

/// Three significant digits are more than the noise allows; whole numbers keep theirs.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1024.0 * 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::sample;
    use crate::compare::scenarios::by_name;

    #[test]
    fn a_table_is_aligned_markdown() {
        let mut table = Table::new(&["proxy", "n"]);
        table.row(vec!["a".into(), "1234".into()]);
        let expected = "| proxy |    n |\n| :---- | ---: |\n| a     | 1234 |\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn figures_have_as_many_digits_as_they_can_carry() {
        let texts: Vec<String> = [0.0, 0.0712, 1.234, 12.34, 123.4, 56_979.4]
            .map(figure)
            .to_vec();
        assert_eq!(texts, ["0", "0.071", "1.23", "12.3", "123", "56979"]);
    }

    #[test]
    fn the_wait_for_the_tail_has_a_table_of_its_own() {
        let waited = |us: f64| Latency {
            p50_us: us,
            p90_us: us * 2.0,
            p99_us: us * 3.0,
            p999_us: us * 4.0,
            max_us: us * 5.0,
        };
        let mut results = Results::default();
        for (peer, us) in [("corelay", 10.0), ("nginx", 25.0)] {
            let mut one = sample("tails", peer, 1, 1.0);
            one.latency = Some(waited(us * 100.0));
            one.tail = Some(waited(us));
            results.samples.push(one);
            let mut all_ns = crate::load::histogram();
            all_ns.record((us * 7e3) as u64).unwrap();
            results.tail_ns.insert(("tails", peer.to_owned()), all_ns);
        }
        let text = scenario(&results, by_name("tails").unwrap());
        let (_, table) = text.split_once("| wait for the tail, us").unwrap();
        let nginx = table
            .lines()
            .find(|line| line.starts_with("| nginx"))
            .unwrap();
        let cells: Vec<&str> = nginx.split('|').map(str::trim).collect();
        let expected = [
            "25.0 (25.0-25.0)",
            "2.50",
            "50.0",
            "75.0 (75.0-75.0)",
            "2.50",
        ];
        assert_eq!(cells[2..7], expected, "{text}");
        assert!(cells[7].starts_with("175"), "{text}");
        results.samples.iter_mut().for_each(|one| one.tail = None);
        let text = scenario(&results, by_name("tails").unwrap());
        assert!(!text.contains("wait for the tail"), "{text}");
    }

    #[test]
    fn errors_are_seen_beside_the_figures() {
        let mut results = Results::default();
        results.samples.push(sample("rr-8", "corelay", 1, 10.0));
        results.samples.push(sample("rr-8", "nginx", 1, 11.0));
        results.samples[1].errors.insert("reset".into(), 3);
        let text = scenario(&results, by_name("rr-8").unwrap());
        assert!(text.contains("nginx (!)"), "{text}");
        assert!(text.contains("3 x reset"), "{text}");
        assert!(text.contains("1.10 (1.10-1.10)"), "{text}");
        assert!(!text.contains("corelay (!)"), "{text}");
    }
}
