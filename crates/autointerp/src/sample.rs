use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashSet};

use crate::{Example, Quiet};

/// An example and what it is ranked by. Of equal keys, the earlier fragment ranks higher.
#[derive(Debug, Clone)]
struct Kept {
    key: u64,
    example: Example,
}

impl Kept {
    fn rank(&self) -> (u64, Reverse<u32>) {
        (self.key, Reverse(self.example.fragment))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Kept {}

/// The examples with the largest keys, at most `capacity` of them. What is kept does not depend on the order of the offers.
#[derive(Debug, Clone)]
struct Largest {
    capacity: usize,
    heap: BinaryHeap<Reverse<Kept>>,
}

impl Largest {
    fn new(capacity: usize) -> Self {
        Self { capacity, heap: BinaryHeap::new() }
    }

    fn offer(&mut self, key: u64, fragment: u32, activations: &[f32]) {
        let full = self.heap.len() == self.capacity;
        if full && self.heap.peek().is_none_or(|least| (key, Reverse(fragment)) <= least.0.rank()) {
            return;
        }
        if full {
            self.heap.pop();
        }
        self.heap.push(Reverse(Kept { key, example: Example { fragment, activations: activations.to_vec() } }));
    }

    /// By falling key.
    fn into_sorted(self) -> Vec<Example> {
        self.heap.into_sorted_vec().into_iter().map(|kept| kept.0.example).collect()
    }
}

/// The strongest fragments of one feature, and random ones of those on which it is active.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    n_random: usize,
    top: Largest,
    random: Largest,
}

impl Pool {
    /// Keeps `top` and `random` fragments.
    pub(crate) fn new(n_top: usize, n_random: usize) -> Self {
        // The random ones may not be among the top ones, which are known only at the end: so many more must be held.
        Self { n_random, top: Largest::new(n_top), random: Largest::new(n_random + n_top) }
    }

    /// Offers a fragment on which the feature reaches `max > 0`. The fragments with the largest `lot` are a random sample, if lots
    /// are drawn independently of everything else.
    pub(crate) fn offer(&mut self, max: f32, lot: u64, fragment: u32, activations: &[f32]) {
        // The bits of positive floats are in the order of the floats.
        self.top.offer(u64::from(max.to_bits()), fragment, activations);
        self.random.offer(lot, fragment, activations);
    }

    /// The top fragments by falling maximum, and the random ones in random order.
    pub(crate) fn finish(self) -> (Vec<Example>, Vec<Example>) {
        let top = self.top.into_sorted();
        let taken: HashSet<u32> = top.iter().map(|example| example.fragment).collect();
        let mut random = self.random.into_sorted();
        random.retain(|example| !taken.contains(&example.fragment));
        random.truncate(self.n_random);
        (top, random)
    }
}

/// A random sample of fragments with the feature's maximum on each: those with the largest lots.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    capacity: usize,
    /// Lot, fragment and the bits of the maximum.
    heap: BinaryHeap<Reverse<(u64, u32, u32)>>,
}

impl Sample {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, heap: BinaryHeap::new() }
    }

    pub(crate) fn offer(&mut self, lot: u64, fragment: u32, max: f32) {
        if self.capacity == 0 {
            return;
        }
        self.heap.push(Reverse((lot, fragment, max.to_bits())));
        if self.heap.len() > self.capacity {
            self.heap.pop();
        }
    }

    /// By falling lot.
    pub(crate) fn finish(self) -> impl Iterator<Item = Quiet> {
        let of = |Reverse((_, fragment, bits)): Reverse<(u64, u32, u32)>| Quiet { fragment, max: f32::from_bits(bits) };
        self.heap.into_sorted_vec().into_iter().map(of)
    }
}

/// A number that looks drawn at random for each triple: the finaliser of SplitMix64 (Steele, Lea and Flood 2014) over its parts. A
/// generator with a state would tie the lots to the order in which fragments and features come.
pub(crate) fn lot(seed: u64, a: u64, b: u64) -> u64 {
    [a, b].into_iter().fold(mix(seed), |state, part| mix(state ^ part))
}

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fragments(examples: &[Example]) -> Vec<u32> {
        examples.iter().map(|example| example.fragment).collect()
    }

    proptest! {
        #[test]
        fn the_heap_equals_a_full_sort(keys in prop::collection::vec(0u64..20, 0..60), capacity in 0usize..12) {
            let mut largest = Largest::new(capacity);
            for (fragment, key) in keys.iter().enumerate() {
                largest.offer(*key, fragment as u32, &[]);
            }
            let mut order: Vec<u32> = (0..keys.len() as u32).collect();
            order.sort_by_key(|fragment| (Reverse(keys[*fragment as usize]), *fragment));
            order.truncate(capacity);
            prop_assert_eq!(fragments(&largest.into_sorted()), order);
        }

        #[test]
        fn a_pool_forgets_the_order_and_never_takes_a_fragment_twice(
            maxima in prop::collection::vec(1u8..9, 1..60), top in 0usize..8, random in 0usize..8, seed: u64
        ) {
            let gather = |order: &mut dyn Iterator<Item = usize>| {
                let mut pool = Pool::new(top, random);
                for fragment in order {
                    pool.offer(f32::from(maxima[fragment]), lot(seed, 0, fragment as u64), fragment as u32, &[]);
                }
                pool.finish()
            };
            let (strong, drawn) = gather(&mut (0..maxima.len()));
            prop_assert_eq!((strong.clone(), drawn.clone()), gather(&mut (0..maxima.len()).rev()));
            prop_assert_eq!(strong.len(), top.min(maxima.len()));
            prop_assert_eq!(drawn.len(), random.min(maxima.len() - strong.len()));
            let all: HashSet<u32> = fragments(&strong).into_iter().chain(fragments(&drawn)).collect();
            prop_assert_eq!(all.len(), strong.len() + drawn.len());
        }
    }

    #[test]
    fn every_fragment_is_drawn_equally_often() {
        let (n, k, rounds) = (50, 10, 4000);
        let mut drawn = vec![0_u32; n];
        for feature in 0..rounds {
            let mut pool = Pool::new(0, k);
            (0..n).for_each(|fragment| pool.offer(1.0, lot(7, feature, fragment as u64), fragment as u32, &[]));
            fragments(&pool.finish().1).iter().for_each(|fragment| drawn[*fragment as usize] += 1);
        }
        // Expected 800 with a standard deviation of 25.
        assert!(drawn.iter().all(|times| times.abs_diff(800) < 125), "{drawn:?}");
    }
}
