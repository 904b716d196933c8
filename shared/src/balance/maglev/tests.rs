use proptest::prelude::*;

use super::*;
use crate::service::shares::WEIGHT_MAX;

const SLOTS: u16 = 16_381;

fn member(number: u16, weight: u16) -> Member {
    let [high, low] = number.to_be_bytes();
    let address = std::net::Ipv4Addr::new(10, 0, high, low).to_ipv6_mapped().octets();
    Member { address, port: 8080, weight }
}

fn members(count: u16) -> Vec<Member> {
    (0..count).map(|number| member(number, 1)).collect()
}

fn shares(slots: &[u16], members: usize) -> Vec<usize> {
    let mut shares = vec![0; members];
    for number in slots {
        shares[usize::from(*number)] += 1;
    }
    shares
}

/// Slots that moved, of those that the one who left did not have.
fn moved(count: u16, size: u16, gone: u16) -> f64 {
    let all = members(count);
    let before = slots(&all, size);
    let rest: Vec<Member> = all.iter().filter(|member| **member != all[usize::from(gone)]).copied().collect();
    let after = slots(&rest, size);
    let others: Vec<_> = before.iter().zip(&after).filter(|(had, _)| **had != gone).collect();
    let moved =
        others.iter().filter(|(had, has)| all[usize::from(**had)] != rest[usize::from(**has)]).count();
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let share = moved as f64 / others.len() as f64;
    share
}

/// By an implementation of its own, in another language (Python), from the description above.
#[test]
fn tables_are_as_they_always_were() {
    let of = |members: &[Member], size| -> (Vec<u16>, u64) {
        let slots = slots(members, size);
        let sum = slots
            .iter()
            .fold(0_u64, |sum, number| sum.wrapping_mul(1_000_003).wrapping_add((*number).into()));
        (slots.into_iter().take(12).collect(), sum)
    };
    let three = [member(1, 1), member(2, 1), member(3, 1)];
    assert_eq!(slots(&three, 13), GOLDEN_THREE);
    let weighted: Vec<Member> = (0..5).map(|number| member(number, number + 1)).collect();
    assert_eq!(of(&weighted, 251), (GOLDEN_WEIGHTED.to_vec(), GOLDEN_WEIGHTED_SUM));
    assert_eq!(of(&members(100), SLOTS), (GOLDEN_HUNDRED.to_vec(), GOLDEN_HUNDRED_SUM));
    let v6 =
        Member { address: "fd00::7".parse::<std::net::Ipv6Addr>().unwrap().octets(), port: 0, weight: 3 };
    assert_eq!(of(&[v6, member(1, 2)], SLOTS_MAX), (GOLDEN_SIX.to_vec(), GOLDEN_SIX_SUM));
}

const GOLDEN_THREE: [u16; 13] = [1, 2, 0, 2, 0, 1, 0, 0, 1, 2, 1, 2, 0];
const GOLDEN_WEIGHTED: [u16; 12] = [4, 1, 4, 3, 1, 2, 0, 3, 4, 4, 4, 2];
const GOLDEN_WEIGHTED_SUM: u64 = 0xd80f_0cdf_8e3f_2c20;
const GOLDEN_HUNDRED: [u16; 12] = [28, 55, 88, 15, 57, 78, 99, 30, 36, 27, 43, 93];
const GOLDEN_HUNDRED_SUM: u64 = 0xe45e_45ac_4b8f_ff22;
const GOLDEN_SIX: [u16; 12] = [0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0];
const GOLDEN_SIX_SUM: u64 = 0x74ef_07f4_5b50_b6ec;

#[test]
fn one_alone_has_the_only_slot_and_nobody_has_none() {
    assert_eq!(slots(&[], SLOTS), [0; 0]);
    assert_eq!(slots(&[member(7, 256)], SLOTS), [0]);
}

#[test]
fn sizes_are_primes_that_fit_the_table() {
    let good = [2, 3, 251, 16_381, 65_521];
    assert!(good.into_iter().all(is_size));
    let bad = [0, 1, 4, 16_383, 65_520, 65_535, 65_537, 131_071, u32::MAX];
    assert!(!bad.into_iter().any(is_size));
}

#[test]
fn who_leaves_moves_few_slots_of_the_others() {
    for gone in [0, 31, 99] {
        let (default, large) = (moved(100, SLOTS, gone), moved(100, SLOTS_MAX, gone));
        println!("{gone}: {default:.4} of 16,381; {large:.4} of 65,521");
        assert!(large <= 0.01 && default <= 0.02, "{default} {large}");
    }
}

#[test]
fn a_hundred_of_different_weights_have_their_shares() {
    let hundred: Vec<Member> = (0..100).map(|number| member(number, 1 + number % 4)).collect();
    for size in [SLOTS, SLOTS_MAX] {
        let total: u32 = hundred.iter().map(|member| u32::from(member.weight)).sum();
        for (share, member) in shares(&slots(&hundred, size), 100).into_iter().zip(&hundred) {
            let due = f64::from(size) * f64::from(member.weight) / f64::from(total);
            #[expect(clippy::cast_precision_loss, reason = "some thousands")]
            let share = share as f64;
            assert!((share - due).abs() <= due * 0.02 + 1.0, "{share} for {due}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Within 2 %, and one slot for what does not divide.
    #[test]
    fn shares_are_as_the_weights(weights in prop::collection::vec(1_u16..=WEIGHT_MAX, 2..40)) {
        let members: Vec<Member> = (0..).zip(&weights).map(|(number, weight)| member(number, *weight)).collect();
        let total: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
        for (share, weight) in shares(&slots(&members, SLOTS), members.len()).into_iter().zip(&weights) {
            let due = f64::from(SLOTS) * f64::from(*weight) / f64::from(total);
            let share = f64::from(u32::try_from(share).unwrap());
            prop_assert!((share - due).abs() <= due * 0.02 + 1.0, "{} for {}", share, due);
        }
    }

    /// Tables are no function of anything but the members: no slot is left free, and nobody is in it who is not one.
    #[test]
    fn every_slot_is_somebodys(count in 2_u16..300, size in prop::sample::select(vec![307_u16, 1021, SLOTS])) {
        let slots = slots(&members(count), size);
        prop_assert_eq!(slots.len(), usize::from(size));
        prop_assert!(slots.iter().all(|number| *number < count));
        prop_assert!(shares(&slots, count.into()).into_iter().all(|share| share > 0));
    }
}
