use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use monosem_llm::{Budget, Client, ClientConfig, Endpoint, LlmError, Prices};

use crate::server::{Answer, Server, digest};
use crate::{ask_all, client, config, flag, question, questions};

#[test]
fn no_more_requests_are_under_way_than_allowed() {
    let server = Server::start(|_, _| Answer::chat("a").after(Duration::from_millis(10)));
    let client = client(ClientConfig { concurrency: 4, ..config(&server) });
    let replies = ask_all(&client, &questions(120), 16);
    assert!(replies.iter().all(|reply| matches!(reply, Some(Ok(_)))));
    assert!((2..=4).contains(&server.most_at_once()), "{}", server.most_at_once());
}

#[test]
fn rates_are_kept_on_average() {
    let server = Server::echo();
    let by_requests = client(ClientConfig { requests_per_minute: Some(1200), ..config(&server) });
    let start = Instant::now();
    assert!(ask_all(&by_requests, &questions(50), 16).iter().all(|reply| matches!(reply, Some(Ok(_)))));
    // 20 a second, of which the first 20 may leave at once.
    assert!(start.elapsed() > Duration::from_millis(1400), "{:?}", start.elapsed());
    assert!(by_requests.spent().waited_s > 1.0);

    // 15 tokens each, as the server counts them; 70 or so by the estimate.
    let by_tokens = client(ClientConfig { tokens_per_minute: Some(60 * 150), concurrency: 1, ..config(&server) });
    let start = Instant::now();
    assert!(ask_all(&by_tokens, &questions(40), 1).iter().all(|reply| matches!(reply, Some(Ok(_)))));
    let took = start.elapsed();
    // 600 tokens at 150 a second, less the second's worth at the start.
    assert!(took > Duration::from_millis(2700), "{took:?}");
}

#[test]
fn one_request_that_is_told_to_wait_holds_back_the_others() {
    let server = Server::start(|request, before| match request.question().as_str() {
        "first" if before == 0 => Answer::error(429, "wait").with("Retry-After", "1"),
        text => Answer::chat(&digest(text)),
    });
    let client = client(config(&server));
    thread::scope(|scope| {
        scope.spawn(|| client.chat(&question("first")).unwrap());
        while client.spent().waited_s == 0.0 {
            thread::sleep(Duration::from_millis(1));
        }
        client.chat(&question("second")).unwrap();
    });
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    for later in &seen[1..] {
        assert!(later.at - seen[0].at >= Duration::from_millis(950), "{:?}", later.at - seen[0].at);
    }
}

#[test]
fn a_date_is_understood_too() {
    // Long past, so that nothing but the back-off is left to wait for.
    let past = "Sun, 06 Nov 1994 08:49:37 GMT";
    let server = Server::start(move |_, before| match before {
        0 => Answer::error(503, "wait").with("Retry-After", past),
        _ => Answer::chat("a"),
    });
    client(config(&server)).chat(&question("x")).unwrap();
    assert_eq!(server.count(), 2);
}

/// What a run within a budget spends; a second one with a larger budget ends the work from the cache.
fn within(budget: Budget, larger: Budget) -> (monosem_llm::Spent, LlmError) {
    // Slow, and fewer at once than there are workers, so that promises are made long before anything is spent.
    let server = Server::start(|_, _| Answer::chat("a").after(Duration::from_millis(40)));
    let folder = tempfile::tempdir().unwrap();
    let prices = Some(Prices { prompt_per_million: 1e5, reply_per_million: 2e5 });
    let config = ClientConfig { prices, cache: Some(folder.path().into()), budget, concurrency: 3, ..config(&server) };
    let questions = questions(60);
    let first = client(config.clone());
    let replies = ask_all(&first, &questions, 8);
    let answered = replies.iter().filter(|reply| matches!(reply, Some(Ok(_)))).count();
    assert!((5..60).contains(&answered), "{answered}");
    let error = replies.into_iter().flatten().find_map(Result::err).unwrap();
    let spent = first.spent();
    assert_eq!(spent.requests as usize, answered);

    let second = client(ClientConfig { budget: larger, ..config });
    assert!(ask_all(&second, &questions, 8).iter().all(|reply| matches!(reply, Some(Ok(_)))));
    assert_eq!((second.spent().requests as usize, second.spent().cached as usize), (60 - answered, answered));
    assert_eq!(server.count(), 60);
    (spent, error)
}

#[test]
fn a_budget_is_never_exceeded_and_a_larger_one_goes_on() {
    let requests = |most| Budget { requests: Some(most), ..Budget::default() };
    let (spent, error) = within(requests(20), requests(40));
    assert_eq!(spent.requests, 20, "promises are waited for, so that a budget is used up");
    assert_eq!(error, LlmError::Budget { what: "requests", limit: "20".into() });
    assert!(error.ends_the_run());

    // 15 tokens a reply; about 57 by the estimate.
    let tokens = |most| Budget { tokens: Some(most), ..Budget::default() };
    let (spent, error) = within(tokens(300), tokens(10_000));
    let used = spent.prompt_tokens + spent.reply_tokens;
    assert!((225..=300).contains(&used), "{used}");
    assert!(matches!(error, LlmError::Budget { what: "tokens", .. }), "{error}");

    // A reply costs 10 x 0.1 + 5 x 0.2 = 2; by the estimate about 11.
    let money = |most| Budget { money: Some(most), ..Budget::default() };
    let (spent, error) = within(money(50.0), money(1e6));
    assert!((38.0..=50.0).contains(&spent.money), "{}", spent.money);
    assert_eq!(spent.money, 2.0 * spent.requests as f64);
    assert_eq!(error.to_string(), "the budget of 50 money is spent");
}

#[test]
fn a_budget_too_small_for_one_request_sends_none() {
    let server = Server::echo();
    let budget = Budget { tokens: Some(40), ..Budget::default() };
    let error = client(ClientConfig { budget, ..config(&server) }).chat(&question("x")).unwrap_err();
    assert!(matches!(error, LlmError::Budget { what: "tokens", .. }));
    assert_eq!(server.count(), 0);
}

/// How long a question takes to end once the flag is set.
fn stopped_after(change: impl FnOnce(&mut ClientConfig), answer: Answer, before: usize) -> Duration {
    let server = Server::start(move |_, _| answer.clone());
    let stop = flag();
    let mut config = config(&server);
    change(&mut config);
    let client = Client::new(config, Some(Arc::clone(&stop))).unwrap();
    thread::scope(|scope| {
        for index in 0..before {
            let client = &client;
            scope.spawn(move || client.chat(&question(&format!("before {index}"))));
        }
        let waiting = scope.spawn(|| {
            let result = client.chat(&question("x"));
            (result, Instant::now())
        });
        thread::sleep(Duration::from_millis(300));
        let set = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let (result, end) = waiting.join().unwrap();
        assert_eq!(result, Err(LlmError::Stopped));
        end.saturating_duration_since(set)
    })
}

#[test]
fn a_stop_ends_every_wait_promptly() {
    let soon = Duration::from_millis(1500);
    let slow = Answer::chat("late").after(Duration::from_secs(5));
    assert!(stopped_after(|_| {}, slow.clone(), 0) < soon, "waiting for an answer");
    assert!(stopped_after(|config| config.concurrency = 1, slow.clone(), 1) < soon, "waiting for a slot");
    let busy = Answer::error(429, "wait").with("Retry-After", "30");
    assert!(stopped_after(|_| {}, busy, 0) < soon, "waiting as the server asked");
    assert!(stopped_after(|config| config.backoff_s = 60.0, Answer::error(500, "x"), 0) < soon, "backing off");
    let rate = |config: &mut ClientConfig| config.tokens_per_minute = Some(1);
    assert!(stopped_after(rate, Answer::chat("a"), 0) < soon, "waiting for the rate");
    let budget = |config: &mut ClientConfig| config.budget.tokens = Some(100);
    assert!(stopped_after(budget, slow, 1) < soon, "waiting for the budget of others");
}
