use super::*;

fn place(port: u16, weight: u16) -> Place {
    Place {
        address: format!("192.0.2.1:{port}").parse().expect("an address"),
        weight,
        backup: false,
    }
}

#[test]
fn two_names_of_one_machine_are_one_server_the_first() {
    let answers = Answers(vec![
        vec![place(1, 5), place(2, 5)],
        vec![place(2, 9), place(3, 9)],
    ]);
    let members = answers.members();
    let seen: Vec<_> = members
        .iter()
        .map(|it| (it.address.to_string(), it.entry, it.weight))
        .collect();
    let expected = [
        ("192.0.2.1:1", 0, 5),
        ("192.0.2.1:2", 0, 5),
        ("192.0.2.1:3", 1, 9),
    ];
    assert_eq!(
        seen,
        expected.map(|(a, entry, weight)| (a.to_owned(), entry, weight))
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
