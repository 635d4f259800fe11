//! "Did you mean": the known word closest to a misspelt one, or what other proxies call otherwise. Pure.

use super::limits::NAME_MAX_BYTES;

/// What HAProxy, nginx and Envoy call it, without case and with `_`, and what it is here.
const ELSEWHERE: [(&str, &str); 36] = [
    ("accept_proxy", "proxy_protocol"),
    ("backend", "upstream"),
    ("clusters", "upstreams"),
    ("consistent", "maglev"),
    ("default_backend", "upstream"),
    ("endpoints", "servers"),
    ("fastinter", "fast_interval"),
    ("fastopen", "fast_open"),
    ("first", "first_available"),
    ("frontends", "listeners"),
    ("health_check", "check"),
    ("health_checks", "check"),
    ("inter", "interval"),
    ("lb_policy", "balance"),
    ("least_conn", "least_connections"),
    ("least_request", "least_connections"),
    ("leastconn", "least_connections"),
    ("listen", "bind"),
    ("max_conns", "max_connections"),
    ("maxconn", "max_connections"),
    ("maxqueue", "max"),
    ("outlier_detection", "eject"),
    ("proxy_bind", "source"),
    ("proxy_pass", "upstream"),
    ("random", "random_two_choices"),
    ("redispatch", "retries"),
    ("resolver", "nameservers"),
    ("resolvers", "dns"),
    ("roundrobin", "round_robin"),
    ("send_proxy", "proxy_protocol"),
    ("server", "servers"),
    ("slowstart", "slow_start"),
    ("source", "source_hash"),
    ("tfo", "fast_open"),
    ("threads", "workers"),
    ("worker_processes", "workers"),
];

/// The known word that another one was probably meant to be: one of another proxy's, or a misspelt one, of
/// which at most a third differs.
pub(super) fn closest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let foreign = word.replace('-', "_").to_ascii_lowercase();
    let of_others = ELSEWHERE.iter().filter(|(theirs, _)| *theirs == foreign);
    let mut here = of_others.filter_map(|(_, ours)| known.iter().find(|it| *it == ours));
    here.next().copied().or_else(|| least_distant(word, known))
}

fn least_distant<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    // A key far longer than any known one is not a slip, and comparing it would cost its square.
    if word.len() > NAME_MAX_BYTES {
        return None;
    }
    // Of two letters none is a third: `v3` is not meant to be `v1`.
    let differs_most = word.chars().count() / 3;
    if differs_most == 0 {
        return None;
    }
    let scored = known
        .iter()
        .map(|candidate| (edit_distance(word, candidate), *candidate));
    scored
        .filter(|(distance, _)| *distance <= differs_most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Levenshtein's distance without regard to case; a swap of neighbours counts as one.
fn edit_distance(one: &str, other: &str) -> usize {
    let fold = |text: &str| {
        text.chars()
            .map(|c| {
                if c == '-' {
                    '_'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect()
    };
    let one: Vec<char> = fold(one);
    let other: Vec<char> = fold(other);
    let mut before_previous: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut current = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let replaced = previous[j] + usize::from(a != b);
            let mut best = replaced.min(previous[j + 1] + 1).min(current[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                best = best.min(before_previous[j - 1] + 1);
            }
            current.push(best);
        }
        before_previous = std::mem::replace(&mut previous, current);
    }
    previous[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_other_proxies_are_understood_where_there_is_such_a_thing() {
        let balance = ["round_robin", "least_connections", "source_hash"];
        for (word, expected) in [
            ("leastconn", Some("least_connections")),
            ("least_conn", Some("least_connections")),
            ("LEAST_REQUEST", Some("least_connections")),
            ("roundrobin", Some("round_robin")),
            ("source", Some("source_hash")),
            ("random", None),
        ] {
            assert_eq!(closest(word, &balance), expected, "{word}");
        }
        assert_eq!(
            closest("maxconn", &["max_connections"]),
            Some("max_connections")
        );
        assert_eq!(
            closest("send-proxy", &["proxy_protocol"]),
            Some("proxy_protocol")
        );
    }

    #[test]
    fn every_word_of_another_proxy_stands_once_in_order_and_leads_somewhere() {
        assert!(ELSEWHERE.is_sorted_by(|one, other| one.0 < other.0));
        let keys = crate::config::known_keys();
        let is_key = |word: &str| {
            let mut parts = keys.iter().flat_map(|key| key.split(['.', '[']));
            parts.any(|part| part == word)
        };
        let choices = crate::config::validate::BALANCES.map(|(word, _)| word);
        for (theirs, ours) in ELSEWHERE {
            assert!(is_key(ours) || choices.contains(&ours), "{theirs}: {ours}");
        }
    }

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["connect", "idle", "half_close", "max_age", "drain"];
        for (word, expected) in [
            ("conect", Some("connect")),
            ("idel", Some("idle")),
            ("half-close", Some("half_close")),
            ("HalfClose", Some("half_close")),
            ("maxage", Some("max_age")),
            ("keepalive", None),
            ("x", None),
            ("id", None),
            ("", None),
        ] {
            assert_eq!(closest(word, &known), expected, "{word}");
        }
    }
}
