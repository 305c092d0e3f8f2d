//! What was spent, what is promised to requests under way, and what is left.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::lock;
use crate::waits::Waits;
use crate::{Budget, LlmError, Prices, Usage};

/// What a client spent since it was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// Requests sent, each attempt counted.
    pub requests: u64,
    /// Tokens read, as the servers counted them, or else estimated.
    pub prompt_tokens: u64,
    /// Tokens written, likewise.
    pub reply_tokens: u64,
    /// Money, in the currency of the prices; 0 without prices.
    pub money: f64,
    /// Answers that cost nothing: from the cache, or from an identical request under way at the time.
    pub cached: u64,
    /// Attempts after the first ones.
    pub retried: u64,
    /// Time in which requests were held back, by rates, back-off and the server's wish: seconds, of all threads together.
    pub waited_s: f64,
}

/// What a request will cost at most, as far as can be told before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Estimate {
    pub(crate) prompt_tokens: u64,
    pub(crate) reply_tokens: u64,
}

impl Estimate {
    /// A token is taken for four bytes.
    pub(crate) fn of(bytes: usize, max_tokens: u32) -> Self {
        Self { prompt_tokens: (bytes as u64).div_ceil(4), reply_tokens: u64::from(max_tokens) }
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.prompt_tokens + self.reply_tokens
    }
}

#[derive(Debug, Default)]
struct State {
    spent: Spent,
    held_requests: u64,
    held_tokens: u64,
    held_money: f64,
}

/// The books of one client.
#[derive(Debug)]
pub(crate) struct Ledger {
    budget: Budget,
    prices: Option<Prices>,
    state: Mutex<State>,
    settled: Condvar,
}

/// A part of the budget that is promised to one attempt; given back when dropped, unless it was settled.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    ledger: &'a Ledger,
    estimate: Estimate,
    sent: bool,
}

impl Ledger {
    pub(crate) fn new(budget: Budget, prices: Option<Prices>) -> Self {
        Self { budget, prices, state: Mutex::new(State::default()), settled: Condvar::new() }
    }

    fn money(&self, estimate: Estimate) -> f64 {
        self.prices.as_ref().map_or(0.0, |prices| prices.of(estimate.prompt_tokens, estimate.reply_tokens))
    }

    /// Promises a part of the budget to an attempt. Where only promises to others stand in the way, waits for what they really cost: they are estimated high.
    pub(crate) fn reserve(&self, estimate: Estimate, waits: &Waits) -> Result<Reservation<'_>, LlmError> {
        let (tokens, money) = (estimate.tokens(), self.money(estimate));
        let mut state = lock(&self.state);
        loop {
            waits.check()?;
            let spent = &state.spent;
            let spent_tokens = spent.prompt_tokens + spent.reply_tokens;
            let over = |limit: Option<u64>, amount: u64| limit.is_some_and(|limit| amount > limit);
            let fail = |what, limit: String| Err(LlmError::Budget { what, limit });
            let Budget { requests, tokens: most_tokens, money: most_money } = self.budget;
            if over(requests, spent.requests + 1) {
                return fail("requests", requests.unwrap_or_default().to_string());
            }
            if over(most_tokens, spent_tokens + tokens) {
                return fail("tokens", most_tokens.unwrap_or_default().to_string());
            }
            if most_money.is_some_and(|most| spent.money + money > most) {
                return fail("money", most_money.unwrap_or_default().to_string());
            }
            let fits = !over(requests, spent.requests + state.held_requests + 1)
                && !over(most_tokens, spent_tokens + state.held_tokens + tokens)
                && most_money.is_none_or(|most| spent.money + state.held_money + money <= most);
            if fits {
                state.held_requests += 1;
                state.held_tokens += tokens;
                state.held_money += money;
                return Ok(Reservation { ledger: self, estimate, sent: false });
            }
            state = waits.on(&self.settled, state)?;
        }
    }

    pub(crate) fn count_cached(&self) {
        lock(&self.state).spent.cached += 1;
    }

    pub(crate) fn count_wait(&self, waited: Duration) {
        lock(&self.state).spent.waited_s += waited.as_secs_f64();
    }

    pub(crate) fn spent(&self) -> Spent {
        lock(&self.state).spent.clone()
    }
}

impl Reservation<'_> {
    /// The attempt leaves now: from here on it counts as a request.
    pub(crate) fn send(&mut self, is_retry: bool) {
        let mut state = lock(&self.ledger.state);
        state.held_requests -= 1;
        state.spent.requests += 1;
        state.spent.retried += u64::from(is_retry);
        self.sent = true;
    }

    /// Writes down what an attempt cost; without a count, what was estimated.
    pub(crate) fn settle(self, usage: Option<Usage>) {
        let cost = usage.map_or(self.estimate, |usage| Estimate {
            prompt_tokens: usage.prompt_tokens,
            reply_tokens: usage.reply_tokens,
        });
        let money = self.ledger.money(cost);
        let mut state = lock(&self.ledger.state);
        state.spent.prompt_tokens += cost.prompt_tokens;
        state.spent.reply_tokens += cost.reply_tokens;
        state.spent.money += money;
        // Dropping gives the promise back.
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let money = self.ledger.money(self.estimate);
        let mut state = lock(&self.ledger.state);
        if !self.sent {
            state.held_requests -= 1;
        }
        state.held_tokens -= self.estimate.tokens();
        // Rounding must not leave a promise behind when nobody holds one.
        state.held_money = if state.held_tokens == 0 { 0.0 } else { state.held_money - money };
        drop(state);
        self.ledger.settled.notify_all();
    }
}
