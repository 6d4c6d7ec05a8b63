use proptest::prelude::*;

use super::super::view::Member;
use super::super::view::tests::member;
use super::*;

const ME: u128 = 1;

fn uuid(node: u128) -> Uuid {
    Uuid::from_u128(node)
}

fn slots() -> impl Iterator<Item = Slot> {
    (0..SLOT_COUNT).map(|slot| Slot::try_from(slot).unwrap())
}

fn ranked(view: &View) -> Ranking {
    let mut ranking = Ranking::default();
    ranking.set(view.owners().map(|member| (member.uuid, member.weight)));
    ranking
}

fn mapped(view: &View) -> SlotMap {
    slot_map(1, view, &ranked(view)).unwrap()
}

fn follow(current: &Current, view: &View, now: Instant) -> Current {
    current.next(mapped(view), uuid(ME), &ranked(view), now)
}

/// Previous owners, as numbers, of the slots this node owns.
fn previous(current: &Current, now: Instant) -> Vec<(Slot, Option<u128>)> {
    let me = uuid(ME).to_string();
    let number = |node: Node| Uuid::try_parse(&node.id).unwrap().as_u128();
    let mine = slots().filter(|&slot| current.map.owners(slot).any(|owner| owner.id == me));
    mine.map(|slot| (slot, current.previous_owners(slot, now).into_iter().map(number).next())).collect()
}

#[test]
fn a_slot_that_moved_twice_came_from_both() {
    let now = Instant::now();
    let minutes = |minutes: u64| 1_000_000 + minutes * 60_000;
    let since = |node, started| Member { incarnation: minutes(started), ..member(node) };
    let alone = Current::new(mapped(&View::new([Member { state: NodeState::Joining, ..since(ME, 20) }])));
    let chains = |members: Vec<Member>| {
        let view = View::new(members.into_iter().chain([since(ME, 20)]));
        let joined = follow(&alone, &view, now);
        let me = uuid(ME).to_string();
        let mine = slots().filter(|&slot| joined.map.owner(slot).id == me);
        let ranking = ranked(&view);
        let owners = mine.map(|slot| {
            let earlier: Vec<Uuid> = ranking.best(slot.get()).skip(1).collect();
            let previous = joined.previous_owners(slot, now).into_iter().map(|node| Uuid::try_parse(&node.id).unwrap());
            (previous.collect::<Vec<_>>(), earlier)
        });
        owners.collect::<Vec<_>>()
    };
    // Who has been there for long has what is hot.
    for (previous, earlier) in chains((2..7).map(|node| since(node, 0)).collect()) {
        assert_eq!(previous, earlier[..1]);
    }
    // One that came just before: then who had it before that one as well.
    let newcomer = uuid(6);
    for (previous, earlier) in chains((2..6).map(|node| since(node, 0)).chain([since(6, 19)]).collect()) {
        assert_eq!(previous, earlier[..if earlier[0] == newcomer { 2 } else { 1 }]);
    }
    // No more than some, however many came.
    for (previous, earlier) in chains((2..7).map(|node| since(node, 15)).collect()) {
        assert_eq!(previous, earlier[..MAX_FORMER]);
    }
}

fn state(node: u128, state: NodeState) -> Member {
    Member { state, ..member(node) }
}

#[test]
fn maps_cover_all_slots_with_as_many_owners_as_asked_for() {
    let joining = state(9, NodeState::Joining);
    let view = View::new([Member { replicas: 2, ..member(1) }, member(2), member(3), joining]);
    let map = mapped(&view);
    assert_eq!(map.nodes(), view.nodes());
    for slot in slots() {
        let owners: Vec<_> = map.owners(slot).map(|owner| owner.id.clone()).collect();
        let best: Vec<_> = ranked(&view).best(slot.get()).take(2).map(|uuid| uuid.to_string()).collect();
        assert_eq!(owners, best);
        if slot.get() == 100 {
            break;
        }
    }
    let owned: Vec<_> = map.slots_owned().iter().map(|owned| owned.total).collect();
    assert_eq!((owned.iter().sum::<u32>(), owned[3]), (2 * u32::from(SLOT_COUNT), 0));
    assert!(slot_map(1, &View::default(), &Ranking::default()).is_err());
}

#[test]
fn a_crash_moves_slots_to_their_second_owners_alone() {
    let before = View::new((1..=5).map(|node| Member { replicas: 2, ..member(node) }));
    let after = View::new((1..=4).map(|node| Member { replicas: 2, ..member(node) }));
    let (before, after) = (mapped(&before), mapped(&after));
    let dead = uuid(5).to_string();
    for slot in slots() {
        let owners: Vec<_> = before.owners(slot).collect();
        let expected = if owners[0].id == dead { owners[1] } else { owners[0] };
        assert_eq!(after.owner(slot), expected);
    }
}

#[test]
fn a_slot_that_is_new_here_came_from_its_owner() {
    let now = Instant::now();
    // Alone, not yet part of it; then with others, whose map this node knows before it owns anything.
    let alone = Current::new(mapped(&View::new([state(ME, NodeState::Joining)])));
    let watching = View::new([state(ME, NodeState::Joining), member(2), member(3)]);
    let seen = follow(&alone, &watching, now);
    assert!(previous(&seen, now).is_empty());
    let joined = follow(&seen, &View::new([member(ME), member(2), member(3)]), now);
    let mine = previous(&joined, now);
    assert!(!mine.is_empty());
    for &(slot, from) in &mine {
        assert_eq!(uuid(from.unwrap()).to_string(), seen.map.owner(slot).id);
    }
    // The same for one that knew nothing of the others.
    let at_once = follow(&alone, &View::new([member(ME), member(2), member(3)]), now);
    assert_eq!(previous(&at_once, now), mine);

    // It is forgotten after a while, and kept until then.
    let view = View::new([member(ME), member(2), member(3), state(4, NodeState::Joining)]);
    let later = now + REMEMBERED - Duration::from_secs(1);
    let kept = follow(&joined, &view, later);
    assert_eq!(previous(&kept, later), mine);
    let later = now + REMEMBERED;
    assert!(previous(&kept, later).iter().all(|(_, from)| from.is_none()));
    assert!(follow(&kept, &view, later).former.is_empty());
}

#[test]
fn slots_of_who_drains_come_from_it_and_those_of_the_dead_from_nobody() {
    let now = Instant::now();
    let three = Current::new(mapped(&View::new([member(ME), member(2), member(3)])));
    let others = |current: &Current| {
        let moved = previous(current, now).into_iter().filter(|&(slot, _)| three.map.owner(slot).id != uuid(ME).to_string());
        moved.map(|(_, from)| from).collect::<std::collections::HashSet<_>>()
    };
    let drained = follow(&three, &View::new([member(ME), member(2), state(3, NodeState::Draining)]), now);
    assert_eq!(others(&drained), [Some(3)].into());
    let gone = follow(&drained, &View::new([member(ME), member(2)]), now);
    assert_eq!(others(&gone), [None].into());
    let crashed = follow(&three, &View::new([member(ME), member(2)]), now);
    assert_eq!(others(&crashed), [None].into());
    // Heavier than before: from whoever had it.
    let heavier = follow(&three, &View::new([Member { weight: 3, ..member(ME) }, member(2), member(3)]), now);
    assert_eq!(others(&heavier), [Some(2), Some(3)].into());
    // What goes elsewhere, and what it had before, came from nobody.
    let lighter = follow(&heavier, &View::new([member(ME), member(2), member(3)]), now);
    assert!(lighter.former.is_empty());
}

#[test]
fn an_epoch_follows_the_clock_but_never_falls() {
    let none = std::iter::empty;
    let mut epoch = Epoch::after(50);
    assert_eq!(epoch.of_view(1, none(), 10, false), 50);
    assert_eq!(epoch.of_view(1, none(), 10, true), 51);
    assert_eq!(epoch.of_view(1, none(), 1_000, true), 51, "the view is the same");
    assert_eq!(epoch.of_view(2, none(), 1_000, true), 1_001);
    assert_eq!(epoch.of_view(3, none(), 7, true), 1_002, "the clock was set back");
    let published = |epoch, fingerprint| [Published { epoch, fingerprint }].into_iter();
    assert_eq!(epoch.of_view(3, published(2_000, 3), 7, true), 2_000);
    assert_eq!(epoch.of_view(3, published(1_500, 3), 7, true), 2_000);
    assert_eq!(epoch.of_view(3, published(3_000, 4), 7, true), 2_000, "of another view");
    assert_eq!(epoch.of_view(4, none(), 7, true), 3_001, "above all that were seen");
    // One that joins takes what there is, and begins nothing.
    let mut joining = Epoch::default();
    assert_eq!(joining.of_view(4, published(9, 4), 7, false), 9);
    assert_eq!(joining.of_view(5, published(9, 4), 7, false), 9);
    // There is an end, and no overflow.
    assert_eq!(joining.of_view(6, published(MAX_EPOCH - 1, 4), 7, true), MAX_EPOCH - 1);
    assert_eq!(joining.of_view(7, none(), u64::MAX, true), MAX_EPOCH - 1);
}

/// What nodes of a model do: one sees another view, or what another has published.
#[derive(Clone, Debug)]
enum Step {
    Sees(usize, u64),
    Hears(usize, usize),
    ClockSteps(usize, u64),
}

struct Modelled {
    epoch: Epoch,
    view: u64,
    clock: u64,
    heard: Vec<Option<Published>>,
    value: u64,
}

impl Modelled {
    fn step(&mut self) {
        let value = self.epoch.of_view(self.view, self.heard.iter().flatten().copied(), self.clock, true);
        assert!(value >= self.value, "an epoch fell");
        self.value = value;
    }

    fn published(&self) -> Published {
        Published { epoch: self.value, fingerprint: self.view }
    }
}

proptest! {
    #[test]
    fn nodes_of_one_view_come_to_one_epoch(steps in proptest::collection::vec(step(), 0..60), last_view in 0_u64..4) {
        let modelled = |_| Modelled { epoch: Epoch::default(), view: 0, clock: 100, heard: vec![None; NODES], value: 0 };
        let mut nodes: Vec<_> = (0..NODES).map(modelled).collect();
        for step in steps {
            let at = match step {
                Step::Sees(at, view) => {
                    let (was, value) = (nodes[at].view, nodes[at].value);
                    nodes[at].view = view;
                    nodes[at].step();
                    prop_assert!(was == view || nodes[at].value > value, "another view, and no new epoch");
                    at
                }
                Step::Hears(at, from) => {
                    // What it says now; news that are older are never heard after newer ones.
                    nodes[at].heard[from] = Some(nodes[from].published());
                    at
                }
                Step::ClockSteps(at, clock) => {
                    nodes[at].clock = clock;
                    at
                }
            };
            nodes[at].step();
        }
        // Then all see the same, and hear each other: once to know the highest, once more to have it everywhere.
        for node in &mut nodes {
            node.view = last_view;
            node.step();
        }
        for _ in 0..2 {
            let published: Vec<_> = nodes.iter().map(Modelled::published).collect();
            for (at, node) in nodes.iter_mut().enumerate() {
                for (from, &published) in published.iter().enumerate().filter(|&(from, _)| from != at) {
                    node.heard[from] = Some(published);
                }
                node.step();
            }
        }
        let epochs: Vec<_> = nodes.iter().map(|node| node.value).collect();
        prop_assert!(epochs.iter().all(|&epoch| epoch == epochs[0]), "{:?}", epochs);
        // And it stays.
        for node in &mut nodes {
            node.clock += 10_000;
            node.step();
        }
        prop_assert!(nodes.iter().all(|node| node.value == epochs[0]));
    }
}

const NODES: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..NODES, 0_u64..4).prop_map(|(at, view)| Step::Sees(at, view)),
        (0..NODES, 0..NODES).prop_map(|(at, from)| Step::Hears(at, from)),
        (0..NODES, 0_u64..100_000).prop_map(|(at, clock)| Step::ClockSteps(at, clock)),
    ]
}
