use super::*;

fn member(port: u16, entry: usize) -> Member {
    Member {
        address: format!("192.0.2.1:{port}").parse().expect("an address"),
        entry,
        weight: 1,
        backup: false,
    }
}

#[test]
fn two_names_of_one_machine_are_one_server_the_first() {
    let answers = Answers(vec![
        vec![member(1, 0), member(2, 0)],
        vec![member(2, 1), member(3, 1)],
    ]);
    assert_eq!(
        answers.members(),
        [member(1, 0), member(2, 0), member(3, 1)]
    );
}

#[test]
fn shares_of_a_service_keep_their_proportions_as_far_as_they_fit() {
    let shares = |weights: &[u16]| -> Vec<u16> {
        let heaviest = weights.iter().copied().max().unwrap_or(0);
        let service = |&weight: &u16| Service {
            priority: 0,
            weight,
            target: String::new(),
            port: 1,
        };
        weights
            .iter()
            .map(|weight| share_of(&service(weight), heaviest))
            .collect()
    };
    assert_eq!(shares(&[0, 0]), [1, 1]);
    assert_eq!(shares(&[0, 60, 20]), [1, 60, 20]);
    assert_eq!(shares(&[256, 1]), [256, 1]);
    assert_eq!(shares(&[65_535, 32_768, 100, 0]), [256, 128, 1, 1]);
}
