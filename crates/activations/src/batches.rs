//! Shuffled batches of row indices, computed rather than stored.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rounds of the Feistel network. Four make a pseudo-random permutation of a pseudo-random function (Luby and Rackoff, 1988); the
/// round function here is only a good mixer, so there are more.
const ROUNDS: usize = 6;

/// Smallest half of the network's word, in bits: on a handful of values a Feistel network reaches too few permutations.
const MIN_HALF: u32 = 5;

/// A keyed permutation of `0..len` in constant memory: a Feistel network on the next power of four, walked until it lands inside
/// (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
#[derive(Debug, Clone)]
struct Permutation {
    len: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    fn new(len: u64, random: &mut ChaCha8Rng) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half: bits.div_ceil(2).max(MIN_HALF), keys: std::array::from_fn(|_| random.next_u64()) }
    }

    /// Where `index < len` goes.
    fn apply(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            value = self.network(value);
            if value < self.len {
                return value;
            }
        }
    }

    /// The index that goes to `value < len`.
    fn invert(&self, value: u64) -> u64 {
        let mut index = value;
        loop {
            index = self.inverse_network(index);
            if index < self.len {
                return index;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half | right
    }

    fn inverse_network(&self, value: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys.into_iter().rev() {
            (left, right) = (right ^ (mix(left ^ key) & mask), left);
        }
        left << self.half | right
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// For stores that are larger than memory: rows are shuffled so that at any time they come from a part of the store that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locality {
    /// Consecutive rows that are read from the disk together; 64 rows of 576 f16 values are 72 KiB.
    pub block_rows: usize,
    /// Blocks, drawn from the whole store, whose rows are shuffled among each other before the next are drawn. The system's page cache
    /// is the buffer: it should hold `block_rows * blocks` rows easily.
    pub blocks: usize,
}

/// An endless stream of full batches of row indices: every epoch visits each row once in an order of its own, and a batch may end one
/// epoch and begin the next.
///
/// A batch is a function of the number of rows, the batch size, the seed and the step, so a run that is resumed at any step costs
/// nothing and continues exactly.
///
/// ```
/// use monosem_activations::Batches;
///
/// let batches = Batches::new(10, 4, 0);
/// let mut epoch: Vec<usize> = (0..5).flat_map(|step| batches.batch(step)).collect();
/// assert_eq!(batches.epoch(2), 0); // rows 8 and 9 of the first epoch, then two of the second
/// epoch[..10].sort_unstable();
/// assert_eq!(epoch[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
/// ```
#[derive(Debug, Clone)]
pub struct Batches {
    rows: u64,
    batch: usize,
    seed: u64,
    locality: Option<Locality>,
}

impl Batches {
    /// Batches of `batch` rows out of `rows`, uniformly shuffled.
    ///
    /// # Panics
    /// If `rows` or `batch` is 0.
    #[must_use]
    pub fn new(rows: usize, batch: usize, seed: u64) -> Self {
        assert!(rows > 0 && batch > 0, "batches of {batch} out of {rows} rows");
        Self { rows: rows as u64, batch, seed, locality: None }
    }

    /// The same with a shuffle that is kind to a disk. Rows of a block stay near each other in time (but each epoch visits every row
    /// once, in a new order); use it only if the store does not fit into memory.
    ///
    /// # Panics
    /// If `rows`, `batch` or a field of `locality` is 0.
    #[must_use]
    pub fn with_locality(rows: usize, batch: usize, seed: u64, locality: Locality) -> Self {
        assert!(locality.block_rows > 0 && locality.blocks > 0, "{locality:?}");
        Self { locality: Some(locality), ..Self::new(rows, batch, seed) }
    }

    /// Rows per batch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch
    }

    /// The epoch in which step `step` begins.
    #[must_use]
    pub fn epoch(&self, step: u64) -> u64 {
        (u128::from(step) * self.batch as u128 / u128::from(self.rows)) as u64
    }

    /// The rows of step `step`.
    #[must_use]
    pub fn batch(&self, step: u64) -> Vec<usize> {
        let mut rows = vec![0; self.batch];
        self.batch_into(step, &mut rows);
        rows
    }

    /// The rows of step `step`, into a buffer that is reused.
    ///
    /// # Panics
    /// If `rows` is not one batch long.
    pub fn batch_into(&self, step: u64, rows: &mut [usize]) {
        assert_eq!(rows.len(), self.batch, "a buffer of {} for a batch of {}", rows.len(), self.batch);
        let start = u128::from(step) * self.batch as u128;
        let mut epoch = (start / u128::from(self.rows)) as u64;
        let mut index = (start % u128::from(self.rows)) as u64;
        let mut order = self.order(epoch);
        for row in rows {
            if index == self.rows {
                (index, epoch) = (0, epoch + 1);
                order = self.order(epoch);
            }
            *row = order.row(index) as usize;
            index += 1;
        }
    }

    fn order(&self, epoch: u64) -> Order {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(epoch);
        match self.locality {
            None => Order::Uniform(Permutation::new(self.rows, &mut random)),
            Some(locality) => Order::Local(Box::new(LocalOrder::new(self.rows, locality, random))),
        }
    }
}

/// The order of one epoch.
enum Order {
    Uniform(Permutation),
    Local(Box<LocalOrder>),
}

impl Order {
    fn row(&mut self, index: u64) -> u64 {
        match self {
            Self::Uniform(permutation) => permutation.apply(index),
            Self::Local(order) => order.row(index),
        }
    }
}

/// Blocks in a permuted order, cut into windows, rows permuted within each window.
struct LocalOrder {
    rows: u64,
    block: u64,
    window: u64,
    blocks: Permutation,
    /// The last block may be short; the place it has in the permuted order.
    last_at: u64,
    random: ChaCha8Rng,
    current: Option<(u64, Permutation)>,
}

impl LocalOrder {
    fn new(rows: u64, locality: Locality, mut random: ChaCha8Rng) -> Self {
        let block = locality.block_rows as u64;
        let count = rows.div_ceil(block);
        let blocks = Permutation::new(count, &mut random);
        let last_at = blocks.invert(count - 1);
        let window = block.saturating_mul(locality.blocks as u64);
        Self { rows, block, window, blocks, last_at, random, current: None }
    }

    fn row(&mut self, index: u64) -> u64 {
        let (window, inside) = (index / self.window, index % self.window);
        let place = window * self.window + self.within(window).apply(inside);
        self.in_blocks(place)
    }

    /// The permutation of a window, made when the window is entered.
    fn within(&mut self, window: u64) -> &Permutation {
        if self.current.as_ref().is_none_or(|(at, _)| *at != window) {
            self.current = None;
        }
        let (rows, window_rows, random) = (self.rows, self.window, &self.random);
        let (_, permutation) = self.current.get_or_insert_with(|| {
            let mut random = random.clone();
            // Each window's keys lie at a place of their own in the epoch's stream, behind those of the blocks.
            random.set_word_pos((1 + u128::from(window)) * 2 * ROUNDS as u128);
            (window, Permutation::new(window_rows.min(rows - window * window_rows), &mut random))
        });
        permutation
    }

    /// The row at a place of the epoch before rows are permuted within windows.
    fn in_blocks(&self, place: u64) -> u64 {
        // A short last block shifts whatever comes after it.
        let short = (self.rows.div_ceil(self.block) * self.block) - self.rows;
        let end_of_last = (self.last_at + 1) * self.block - short;
        let place = if place < end_of_last { place } else { place + short };
        self.blocks.apply(place / self.block) * self.block + place % self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epoch(batches: &Batches, rows: usize, epoch: usize) -> Vec<usize> {
        let (first, end) = (epoch * rows / batches.batch, ((epoch + 1) * rows).div_ceil(batches.batch));
        let stream: Vec<usize> = (first..end).flat_map(|step| batches.batch(step as u64)).collect();
        stream[epoch * rows - first * batches.batch..][..rows].to_vec()
    }

    fn is_permutation(order: &[usize]) -> bool {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        sorted.into_iter().eq(0..order.len())
    }

    proptest! {
        #[test]
        fn an_epoch_visits_every_row_once(
            rows in 1usize..3000, batch in 1usize..4000, seed: u64, at in 0usize..5, block_rows in 1usize..80, blocks in 1usize..40,
        ) {
            prop_assert!(is_permutation(&epoch(&Batches::new(rows, batch, seed), rows, at)));
            let local = Batches::with_locality(rows, batch, seed, Locality { block_rows, blocks });
            prop_assert!(is_permutation(&epoch(&local, rows, at)));
        }

        #[test]
        fn a_batch_depends_on_nothing_but_its_step(rows in 1usize..500, batch in 1usize..60, seed: u64, steps: [u16; 4], local: bool) {
            let new = || {
                let locality = Locality { block_rows: 8, blocks: 4 };
                if local { Batches::with_locality(rows, batch, seed, locality) } else { Batches::new(rows, batch, seed) }
            };
            let one = new();
            for step in steps.map(u64::from) {
                prop_assert_eq!(one.batch(step), new().batch(step));
            }
        }

        #[test]
        fn a_permutation_has_its_inverse(len in 1u64..1 << 40, seed: u64, at: u64) {
            let permutation = Permutation::new(len, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert_eq!(permutation.invert(permutation.apply(at % len)), at % len);
        }
    }

    /// Sum of (observed - expected)^2 / expected, in standard deviations from its mean under uniformity.
    fn chi_square(counts: &[u32]) -> f64 {
        let expected = counts.iter().map(|c| f64::from(*c)).sum::<f64>() / counts.len() as f64;
        let sum: f64 = counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum();
        let freedom = (counts.len() - 1) as f64;
        (sum - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn every_order_of_a_few_rows_is_as_likely() {
        for rows in [2usize, 3, 4, 5] {
            let orders = (1..=rows).product::<usize>();
            let mut counts = vec![0; orders];
            for seed in 0..200 * orders as u64 {
                // The Lehmer code of the order.
                let order = Batches::new(rows, rows, seed).batch(0);
                let digit = |i: usize| order[i + 1..].iter().filter(|later| **later < order[i]).count();
                counts[(0..rows).fold(0, |code, i| code * (rows - i) + digit(i))] += 1;
            }
            assert!(chi_square(&counts).abs() < 4.0, "{rows} rows: {}", chi_square(&counts));
        }
    }

    #[test]
    fn places_and_neighbours_are_uniform() {
        // 16 x 16 classes of (place in the epoch, row), and of rows that follow each other; over epochs, and over seeds.
        for (rows, seeds) in [(1000usize, false), (1024, true), (4097, false), (5000, true)] {
            let (mut places, mut neighbours) = (vec![0u32; 256], vec![0u32; 256]);
            for run in 0..60u64 {
                let (seed, step) = if seeds { (run, 0) } else { (7, run) };
                let order = Batches::new(rows, rows, seed).batch(step);
                let class = |row: usize| row * 16 / rows;
                for (place, &row) in order.iter().enumerate() {
                    places[class(place) * 16 + class(row)] += 1;
                }
                for pair in order.windows(2) {
                    neighbours[class(pair[0]) * 16 + class(pair[1])] += 1;
                }
            }
            // Classes of a place are all filled equally, which takes away freedom: the statistic may lie below, not above.
            assert!(chi_square(&places) < 4.0, "{rows} rows: {}", chi_square(&places));
            assert!(chi_square(&neighbours) < 4.0, "{rows} rows: {}", chi_square(&neighbours));
        }
    }

    #[test]
    fn a_permutation_has_few_fixed_points_and_steps() {
        // For a random permutation the number of rows that stay, and of rows followed by their successor, is Poisson with mean 1.
        let (mut fixed, mut successors) = (0, 0);
        for seed in 0..400 {
            let order = Batches::new(3000, 3000, seed).batch(0);
            fixed += order.iter().enumerate().filter(|(place, row)| place == *row).count();
            successors += order.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
        }
        // Four standard deviations of 20.
        assert!((320..480).contains(&fixed) && (320..480).contains(&successors), "{fixed} {successors}");
    }

    #[test]
    fn local_order_stays_in_its_window_and_spans_the_store() {
        let locality = Locality { block_rows: 16, blocks: 32 };
        let order = Batches::with_locality(100_000, 100_000, 3, locality).batch(0);
        for window in order.chunks(512) {
            let mut blocks: Vec<usize> = window.iter().map(|row| row / 16).collect();
            let mean = blocks.iter().sum::<usize>() as f64 / blocks.len() as f64;
            assert!((1000.0..5200.0).contains(&mean) || window.len() < 512, "blocks around {mean} of 6250");
            blocks.sort_unstable();
            blocks.dedup();
            assert!(blocks.len() <= 32);
        }
        // Neighbours in a window are strangers: within one of 32 blocks by chance only.
        let together = order.windows(2).filter(|pair| pair[0] / 16 == pair[1] / 16).count();
        assert!((2400..3700).contains(&together), "{together}");
    }

    #[test]
    fn epochs_and_seeds_differ_and_stay_as_they_are() {
        let batches = Batches::new(1_000_000, 4, 1);
        // Pinned as first drawn: a run that is resumed by a later version of the program relies on it.
        assert_eq!(batches.batch(0), [529_323, 581_603, 838_813, 148_679]);
        assert_eq!(batches.batch(250_000), [206_829, 864_054, 671_626, 91_995]);
        assert_eq!((batches.epoch(249_999), batches.epoch(250_000)), (0, 1));
        assert_ne!(batches.batch(0), Batches::new(1_000_000, 4, 2).batch(0));
    }
}
