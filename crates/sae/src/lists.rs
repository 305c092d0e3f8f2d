//! The entries of one tile: what was chosen of its pre-activations, first by row, then by latent.

use crate::encode::Candidates;
use crate::family::MAX_EXTRAS;

/// Which candidates become entries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Choice {
    /// All of them.
    All,
    /// The k largest of each row; among equal ones the lower latent wins.
    Largest(usize),
    /// Those above a value, and so many of those equal to it.
    Above(f32, usize),
}

/// Buffers are kept from step to step.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    /// Row i has the entries from `starts[i]` to `starts[i + 1]`.
    pub(crate) starts: Vec<usize>,
    pub(crate) latents: Vec<u32>,
    pub(crate) pre: Vec<f32>,
    pub(crate) codes: Vec<f32>,
    /// The loss's gradient by each code.
    pub(crate) dots: Vec<f32>,
    /// Codes of a second reconstruction and the gradient by them; empty where there is none.
    pub(crate) second: Vec<f32>,
    pub(crate) second_dots: Vec<f32>,
    /// Latent j has the entries from `latent_starts[j]` to `latent_starts[j + 1]` of those below, rows ascending.
    latent_starts: Vec<u32>,
    pub(crate) by_latent: ByLatent,
    sorted: Vec<f32>,
}

/// What is known of each entry in the order of latents.
#[derive(Debug, Default)]
pub(crate) struct ByLatent {
    pub(crate) rows: Vec<u32>,
    pub(crate) latents: Vec<u32>,
    pub(crate) pre: Vec<f32>,
    pub(crate) codes: Vec<f32>,
    pub(crate) dots: Vec<f32>,
    pub(crate) second_dots: Vec<f32>,
    /// The loss's gradient by the pre-activation.
    pub(crate) deltas: Vec<f32>,
    /// And by the extra parameters of the latent; empty where there are none.
    pub(crate) extras: [Vec<f32>; MAX_EXTRAS],
}

/// The entries of one latent in a tile.
#[derive(Clone, Copy)]
pub(crate) struct OfLatent<'a> {
    pub(crate) rows: &'a [u32],
    pub(crate) codes: &'a [f32],
    pub(crate) deltas: &'a [f32],
    pub(crate) extras: [&'a [f32]; MAX_EXTRAS],
}

impl Lists {
    /// Takes the chosen candidates over, row by row; returns the smallest that was chosen.
    pub(crate) fn choose(&mut self, candidates: &Candidates, choice: Choice) -> f32 {
        self.starts.clear();
        self.starts.push(0);
        self.latents.clear();
        self.pre.clear();
        let mut smallest = f32::INFINITY;
        let mut ties_left = if let Choice::Above(_, ties) = choice { ties } else { 0 };
        for i in 0..candidates.rows() {
            let above = match choice {
                Choice::All => None,
                Choice::Above(value, _) => Some(value),
                Choice::Largest(k) => {
                    self.sorted.clear();
                    candidates.row(i).for_each(|(_, pre)| self.sorted.extend_from_slice(pre));
                    (self.sorted.len() > k).then(|| {
                        let value = *self.sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
                        ties_left = k - self.sorted[..k].iter().filter(|v| **v > value).count();
                        value
                    })
                }
            };
            for (latents, pre) in candidates.row(i) {
                let Some(above) = above else {
                    self.latents.extend_from_slice(latents);
                    self.pre.extend_from_slice(pre);
                    smallest = pre.iter().copied().fold(smallest, f32::min);
                    continue;
                };
                for (latent, pre) in latents.iter().zip(pre) {
                    let tie = *pre == above && ties_left > 0;
                    if tie || *pre > above {
                        ties_left -= usize::from(tie);
                        self.latents.push(*latent);
                        self.pre.push(*pre);
                        smallest = smallest.min(*pre);
                    }
                }
            }
            self.starts.push(self.latents.len());
        }
        smallest
    }

    /// Row `i`: its latents and codes.
    pub(crate) fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let entries = self.starts[i]..self.starts[i + 1];
        (&self.latents[entries.clone()], &self.codes[entries])
    }

    /// The same entries ordered by latent, by counting, with room for the gradients.
    pub(crate) fn sort_by_latent(&mut self, n_latents: usize, n_extras: usize) {
        let n = self.latents.len();
        self.latent_starts.clear();
        self.latent_starts.resize(n_latents + 1, 0);
        for latent in &self.latents {
            self.latent_starts[*latent as usize + 1] += 1;
        }
        let mut total = 0;
        for start in &mut self.latent_starts {
            total += *start;
            *start = total;
        }
        let ByLatent { rows, latents, pre, codes, dots, second_dots, deltas, extras } = &mut self.by_latent;
        for ids in [&mut *rows, latents] {
            ids.resize(n, 0);
        }
        for values in [&mut *pre, codes, dots, deltas].into_iter().chain(&mut extras[..n_extras]) {
            values.resize(n, 0.0);
        }
        second_dots.resize(self.second_dots.len(), 0.0);
        let has_second = !self.second_dots.is_empty();
        // `latent_starts[j]` serves as the place of latent j's next entry, and has become the beginning of latent j + 1 when all are placed.
        for (row, entries) in (0..).zip(self.starts.windows(2)) {
            for entry in entries[0]..entries[1] {
                let latent = self.latents[entry];
                let next = &mut self.latent_starts[latent as usize];
                let place = *next as usize;
                *next += 1;
                (rows[place], latents[place]) = (row, latent);
                (pre[place], codes[place], dots[place]) = (self.pre[entry], self.codes[entry], self.dots[entry]);
                if has_second {
                    second_dots[place] = self.second_dots[entry];
                }
            }
        }
        self.latent_starts.rotate_right(1);
        self.latent_starts[0] = 0;
    }

    /// The entries of latent `j`.
    pub(crate) fn of(&self, j: usize) -> OfLatent<'_> {
        let entries = self.latent_starts[j] as usize..self.latent_starts[j + 1] as usize;
        let of = &self.by_latent;
        OfLatent {
            rows: &of.rows[entries.clone()],
            codes: &of.codes[entries.clone()],
            deltas: &of.deltas[entries.clone()],
            extras: of.extras.each_ref().map(|extra| extra.get(entries.clone()).unwrap_or_default()),
        }
    }

    /// Bytes of the buffers.
    pub(crate) fn bytes(&self) -> usize {
        let of = &self.by_latent;
        let floats = [&self.pre, &self.codes, &self.dots, &self.second, &self.second_dots, &self.sorted];
        let sorted = [&of.pre, &of.codes, &of.dots, &of.second_dots, &of.deltas];
        let words: usize = floats.into_iter().chain(sorted).chain(&of.extras).map(Vec::capacity).sum();
        let ids = [&self.latents, &self.latent_starts, &of.rows, &of.latents];
        4 * (words + ids.map(Vec::capacity).iter().sum::<usize>()) + 8 * self.starts.capacity()
    }
}
