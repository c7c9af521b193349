use super::*;

/// Some tokens of a lease that was asked for at that time, at a Redis where the next is free `wait` ms later.
fn leased(tokens: u32, wait: u64) -> Leased {
    Leased {
        tokens,
        slots: Vec::new(),
        now: 1_000,
        free: 1_000 + wait,
    }
}

fn is_token(entry: Option<Entry>) -> bool {
    matches!(entry, Some(Entry::Token(_)))
}

#[test]
fn a_node_that_was_frozen_has_saved_no_tokens() {
    let (mut held, metrics) = (Held::default(), BudgetMetrics::default());
    let asked = Instant::now();
    held.lease(&leased(10, 0), asked);
    assert!(is_token(held.enter(asked + HOLD / 2, &metrics)));
    // Frozen here. What came before is of no use, and the next has to ask.
    let thawed = asked + HOLD;
    assert!(held.enter(thawed, &metrics).is_none());
    assert_eq!(metrics.expired.get(), 9);
    // Frozen between the asking and the answer: the same.
    held.lease(&leased(10, 0), asked);
    assert!(matches!(held.take(thawed, &metrics), Entry::Over));
    assert_eq!(metrics.expired.get(), 19);
}

#[test]
fn it_is_not_asked_again_before_there_can_be_a_token_but_soon_anyway() {
    let (mut held, metrics) = (Held::default(), BudgetMetrics::default());
    let asked = Instant::now();
    held.lease(&leased(0, 20), asked);
    let at = |millis| asked + Duration::from_millis(millis);
    assert!(matches!(held.enter(at(19), &metrics), Some(Entry::Over)));
    assert!(held.enter(at(20), &metrics).is_none());
    held.lease(&leased(0, 60_000), asked);
    assert!(matches!(held.enter(at(99), &metrics), Some(Entry::Over)));
    // The schedule may be gone.
    assert!(held.enter(at(100), &metrics).is_none());
}

#[test]
fn a_token_that_is_given_back_is_the_next_ones() {
    let (mut held, metrics) = (Held::default(), BudgetMetrics::default());
    let asked = Instant::now();
    held.lease(&leased(1, 1_000), asked);
    let Some(Entry::Token(token)) = held.enter(asked, &metrics) else {
        panic!("there is one");
    };
    assert!(matches!(held.enter(asked, &metrics), Some(Entry::Over)));
    held.keep(token);
    assert!(is_token(held.enter(asked, &metrics)));
}

#[test]
fn a_slot_that_is_given_back_goes_to_the_next_unless_it_is_too_near() {
    let (mut held, metrics) = (Held::default(), BudgetMetrics::default());
    for slot in [3_000, 1_000, 2_000] {
        assert!(held.keep_slot(slot));
    }
    assert_eq!(held.slot(500, &metrics), Some(1_000));
    assert_eq!(held.slot(1_995, &metrics), Some(3_000));
    assert_eq!(held.slot(1_995, &metrics), None);
    let unused = crate::telemetry::Reason { reason: "unused" };
    assert_eq!(metrics.slots.get_or_create(&unused).get(), 1);
}

#[test]
fn demand_is_what_came_in_the_last_tenth_of_a_second() {
    let (mut held, metrics) = (Held::default(), BudgetMetrics::default());
    let start = Instant::now();
    for n in 0..10 {
        held.enter(start + Duration::from_millis(n), &metrics);
    }
    assert_eq!(held.demand(start + Duration::from_millis(99)), 0);
    assert_eq!(held.demand(start + Duration::from_millis(120)), 10);
    held.enter(start + Duration::from_millis(130), &metrics);
    assert_eq!(held.demand(start + Duration::from_millis(900)), 0);
}
