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
    pub(crate) deltas: Vec<f32>,
    /// Gradients by the extra parameters of the entry's latent; empty where there are none.
    pub(crate) extras: [Vec<f32>; MAX_EXTRAS],
    /// Latent j has the entries from `latent_starts[j]` to `latent_starts[j + 1]` of those below, rows ascending.
    latent_starts: Vec<u32>,
    by_latent_rows: Vec<u32>,
    by_latent_codes: Vec<f32>,
    by_latent_deltas: Vec<f32>,
    by_latent_extras: [Vec<f32>; MAX_EXTRAS],
    sorted: Vec<f32>,
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

    /// Room for what is computed of every entry.
    pub(crate) fn prepare(&mut self, n_extras: usize) {
        let n = self.latents.len();
        self.codes.resize(n, 0.0);
        self.deltas.resize(n, 0.0);
        self.extras[..n_extras].iter_mut().for_each(|extra| extra.resize(n, 0.0));
    }

    /// The same entries ordered by latent, by counting.
    pub(crate) fn sort_by_latent(&mut self, n_latents: usize) {
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
        self.by_latent_rows.resize(n, 0);
        self.by_latent_codes.resize(n, 0.0);
        self.by_latent_deltas.resize(n, 0.0);
        for (sorted, extra) in self.by_latent_extras.iter_mut().zip(&self.extras) {
            sorted.resize(extra.len(), 0.0);
        }
        let has_extras = !self.extras[0].is_empty();
        // `latent_starts[j]` serves as the place of latent j's next entry, and has become the beginning of latent j + 1 when all are placed.
        for (row, entries) in (0..).zip(self.starts.windows(2)) {
            for entry in entries[0]..entries[1] {
                let next = &mut self.latent_starts[self.latents[entry] as usize];
                let place = *next as usize;
                *next += 1;
                self.by_latent_rows[place] = row;
                self.by_latent_codes[place] = self.codes[entry];
                self.by_latent_deltas[place] = self.deltas[entry];
                if has_extras {
                    for (sorted, extra) in self.by_latent_extras.iter_mut().zip(&self.extras) {
                        if let Some(value) = extra.get(entry) {
                            sorted[place] = *value;
                        }
                    }
                }
            }
        }
        self.latent_starts.rotate_right(1);
        self.latent_starts[0] = 0;
    }

    /// The entries of latent `j`.
    pub(crate) fn of(&self, j: usize) -> OfLatent<'_> {
        let entries = self.latent_starts[j] as usize..self.latent_starts[j + 1] as usize;
        OfLatent {
            rows: &self.by_latent_rows[entries.clone()],
            codes: &self.by_latent_codes[entries.clone()],
            deltas: &self.by_latent_deltas[entries.clone()],
            extras: self.by_latent_extras.each_ref().map(|extra| extra.get(entries.clone()).unwrap_or_default()),
        }
    }

    /// Bytes of the buffers.
    pub(crate) fn bytes(&self) -> usize {
        let floats = [&self.pre, &self.codes, &self.deltas, &self.by_latent_codes, &self.by_latent_deltas, &self.sorted];
        let extras = self.extras.iter().chain(&self.by_latent_extras);
        let words: usize = floats.into_iter().chain(extras).map(Vec::capacity).sum();
        let counts = self.latents.capacity() + self.latent_starts.capacity() + self.by_latent_rows.capacity();
        4 * (words + counts) + 8 * self.starts.capacity()
    }
}
