//! The same decisions, made the plainest way: from all that ever happened, second by second.

use super::stories::{command, words};
use super::*;
use crate::rules::task::Verify;
use proptest::prelude::*;

type Named = Task<&'static str>;

const INTERVAL: u64 = 10;

#[derive(Clone, Copy, Debug)]
enum Input {
    Value { bad: bool, clear: bool, check: bool },
    Succeeded,
    Failed,
    NotRun,
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Watching,
    Due(usize, u64),
    Acting(usize),
    Verifying(usize, u64, u64),
    Over(bool),
}

/// One rule, one series.
struct Model {
    task: Named,
    state: State,
    /// Second, bad, clear, check.
    values: Vec<(u64, bool, bool, bool)>,
    /// Values before this one do not count.
    first: usize,
    starts: Vec<(u64, Action)>,
    exhausted: Vec<Action>,
    /// A plain task's action runs.
    running: bool,
    told: Vec<String>,
}

impl Model {
    fn new(task: Named) -> Self {
        Self {
            task,
            state: State::Watching,
            values: Vec::new(),
            first: 0,
            starts: Vec::new(),
            exhausted: Vec::new(),
            running: false,
            told: Vec::new(),
        }
    }

    fn tell(&mut self, at: u64, what: String) {
        let dry = if self.task.dry_run { "would " } else { "" };
        self.told.push(format!("{at} {dry}{what}"));
    }

    fn action(&self, step: usize) -> Option<Action> {
        let mut all = vec![self.task.action.clone()];
        all.extend(self.task.escalate.clone());
        all.get(step).cloned()
    }

    /// Whether the condition held with this value as the last one.
    fn held(&self, last: usize) -> bool {
        let values = &self.values[self.first..=last];
        match self.task.times {
            Some(Times { hits, of }) => {
                let recent = values.iter().rev().take(of as usize);
                recent.filter(|value| value.1).count() >= hits as usize
            }
            None => values.last().is_some_and(|value| value.1),
        }
    }

    fn holds(&self) -> bool {
        self.values.len() > self.first && self.held(self.values.len() - 1)
    }

    fn cleared(&self) -> bool {
        let last = self.values.last().unwrap();
        match self.task.clear {
            Some(_) => last.2,
            None => !self.holds(),
        }
    }

    fn recovered(&self) -> bool {
        match self.task.verify.as_ref().and_then(|v| v.check) {
            Some(_) => self.values.last().unwrap().3,
            None => self.cleared(),
        }
    }

    fn ripe(&self, now: u64) -> bool {
        let mut since = None;
        for at in self.first..self.values.len() {
            match (self.held(at), since) {
                (true, None) => since = Some(self.values[at].0),
                (false, _) => since = None,
                _ => {}
            }
        }
        since.is_some_and(|since| now - since >= self.task.hold.as_secs())
    }

    fn silent(&self, now: u64) -> bool {
        now - self.values.last().unwrap().0 >= 3 * INTERVAL
    }

    /// Starts an action, or says when to try again.
    fn launch(&mut self, step: usize, now: u64) -> Result<(), u64> {
        let action = self.action(step).unwrap();
        let same: Vec<u64> = self
            .starts
            .iter()
            .filter(|(_, other)| *other == action)
            .map(|(at, _)| *at)
            .collect();
        if let Some(last) = same.last() {
            let free = last + self.task.cooldown.as_secs();
            if free > now {
                return Err(free);
            }
        }
        if let Some(most) = self.task.max_per_hour {
            let recent: Vec<_> = same.iter().filter(|at| *at + 3600 > now).collect();
            if recent.len() >= most as usize {
                let free = recent[recent.len() - most as usize] + 3600;
                if !self.exhausted.contains(&action) {
                    self.exhausted.push(action);
                    self.tell(now, "exhausted".into());
                }
                return Err(free);
            }
        }
        self.exhausted.retain(|other| *other != action);
        self.tell(now, format!("run {action}"));
        self.starts.push((now, action));
        Ok(())
    }

    fn start(&mut self, step: usize, now: u64) {
        match self.launch(step, now) {
            Ok(()) => {
                self.state = State::Acting(step);
                if self.task.dry_run {
                    self.ended(Input::Succeeded, now);
                }
            }
            Err(at) => self.state = State::Due(step, at),
        }
    }

    fn failed(&mut self, step: usize, why: &str, now: u64) {
        if self.action(step + 1).is_none() {
            self.tell(now, format!("give up: {why}"));
            self.state = State::Over(true);
            return;
        }
        self.tell(now, format!("escalate: {why}"));
        if self.recovered() {
            self.state = State::Due(step + 1, now + 3 * INTERVAL);
        } else {
            self.start(step + 1, now);
        }
    }

    fn ended(&mut self, how: Input, now: u64) {
        self.running = false;
        let State::Acting(step) = self.state else {
            self.first = self.values.len();
            return;
        };
        match (how, &self.task.verify) {
            (Input::NotRun, _) => self.failed(step, "refused", now),
            (_, Some(verify)) => {
                let until = now + verify.within.as_secs().max(2 * INTERVAL);
                self.state = State::Verifying(step, now, until);
            }
            (Input::Succeeded, None) => self.state = State::Over(false),
            _ => self.failed(step, "exit", now),
        }
    }

    fn helped(&mut self, step: usize, after: u64, now: u64) {
        let action = self.action(step).unwrap();
        self.tell(now, format!("recovered by {action} in {after}"));
        self.state = State::Over(false);
        if self.cleared() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.state = State::Watching;
        self.first = self.values.len();
    }

    fn second(&mut self, now: u64) {
        // A step that fails at once makes the next one due in the same second.
        loop {
            let before = self.state;
            match self.state {
                State::Due(0, at) if at <= now && self.silent(now) => self.forget(),
                State::Due(step, at) if at <= now => self.start(step, now),
                State::Verifying(step, from, until) if until <= now => {
                    let why = format!("no recovery within {} s", until - from);
                    self.failed(step, &why, now);
                }
                _ => {}
            }
            if self.state == before {
                return;
            }
        }
    }

    fn value(&mut self, now: u64, (bad, clear, check): (bool, bool, bool)) {
        if self.state == State::Watching && self.values.len() > self.first && self.silent(now) {
            self.first = self.values.len();
        }
        let asked = self.state != State::Watching;
        self.values.push((now, bad, asked && clear, asked && check));
        match self.state {
            State::Watching if !self.ripe(now) => {}
            State::Watching if self.has_episodes() => self.start(0, now),
            State::Watching => self.act_at_once(now),
            State::Due(0, _) if !self.holds() => self.state = State::Watching,
            State::Due(1.., _) if self.recovered() => {
                let State::Due(step, _) = self.state else {
                    unreachable!()
                };
                self.helped(step - 1, 0, now);
            }
            State::Due(step, _) => self.start(step, now),
            State::Verifying(step, from, _) if now > from && self.recovered() => {
                self.helped(step, now - from, now);
            }
            State::Over(gave_up) if self.cleared() => {
                if gave_up {
                    self.tell(now, "cleared".into());
                }
                self.forget();
            }
            _ => {}
        }
    }

    fn act_at_once(&mut self, now: u64) {
        if !self.running && self.launch(0, now).is_ok() {
            self.running = !self.task.dry_run;
            self.first = self.values.len();
        }
    }

    fn has_episodes(&self) -> bool {
        self.task.clear.is_some() || self.task.verify.is_some() || !self.task.escalate.is_empty()
    }

    fn acting(&self) -> bool {
        self.running || matches!(self.state, State::Acting(_))
    }
}

fn task() -> impl Strategy<Value = Named> {
    let names = || prop_oneof![Just(None), Just(Some("f"))];
    let verify = prop::option::of((0..80_u64, names()).prop_map(|(within, check)| Verify {
        within: Duration::from_secs(within),
        check,
    }));
    (
        0..50_u64,
        prop::option::of((1..5_u32, 0..4_u32)),
        names(),
        prop_oneof![Just(0), 1..200_u64],
        prop::option::of(1..4_u32),
        verify,
        0..3_usize,
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |(hold, times, clear, cooldown, max_per_hour, verify, steps, dry_run)| Task {
                action: command("a"),
                hold: Duration::from_secs(hold),
                times: times.map(|(hits, more)| Times {
                    hits,
                    of: hits + more,
                }),
                clear,
                cooldown: Duration::from_secs(cooldown),
                max_per_hour,
                verify,
                // The last step may be the first one once more.
                escalate: ["b", "a"][..steps]
                    .iter()
                    .map(|name| command(name))
                    .collect(),
                dry_run,
            },
        )
}

fn inputs() -> impl Strategy<Value = Vec<(u64, Input)>> {
    let value = |bad| {
        (prop::bool::weighted(bad), any::<bool>(), any::<bool>())
            .prop_map(|(bad, clear, check)| Input::Value { bad, clear, check })
    };
    let input = prop_oneof![
        6 => value(0.9),
        2 => value(0.2),
        2 => Just(Input::Succeeded),
        1 => Just(Input::Failed),
        1 => Just(Input::NotRun),
        1 => Just(Input::Nothing),
    ];
    let pause = prop_oneof![8 => 1..15_u64, 2 => 15..70_u64, 1 => 300..2000_u64];
    prop::collection::vec((pause, input), 1..80)
}

/// What an input is to the episodes.
fn give(
    episodes: &mut Episodes<&'static str>,
    task: &Named,
    running: &mut Vec<RunId>,
    now: Moment,
    input: Input,
    effects: &mut Vec<Effect>,
) {
    let ended = match input {
        Input::Value { bad, clear, check } => {
            let ask = episodes.ask("r", "s");
            let (asked_clear, asked_check) = (ask.clear.is_some(), ask.check.is_some());
            let verdict = Verdict {
                task: bad.then(|| task.clone()),
                clear: asked_clear.then_some(clear),
                check: asked_check.then_some(check),
            };
            let seen = Seen {
                measured: now,
                now,
                interval: Some(Duration::from_secs(INTERVAL)),
            };
            episodes.evaluate("r", "s", seen, verdict, effects);
            return;
        }
        Input::Succeeded => Ended::Succeeded,
        Input::Failed => Ended::Failed("exit".into()),
        Input::NotRun => Ended::NotRun("refused".into()),
        Input::Nothing => return,
    };
    if let Some(id) = running.pop() {
        episodes.finished(id, &ended, now, effects);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn it_agrees_with_the_model(task in task(), inputs in inputs()) {
        let mut model = Model::new(task.clone());
        let mut episodes = Episodes::new(false);
        let mut running = Vec::new();
        let mut told = Vec::new();
        let mut now = 100;
        for (pause, input) in inputs {
            for second in now..now + pause {
                model.second(second);
            }
            now += pause;
            model.second(now);
            let mut effects = Vec::new();
            let mut note = |at: Moment, effects: &mut Vec<Effect>, running: &mut Vec<RunId>| {
                for effect in effects.drain(..) {
                    if let Effect::Run(Run { id, dry: false, .. }) = effect {
                        running.push(id);
                    }
                    told.push(format!("{} {}", at.as_secs(), words(&effect)));
                }
            };
            let moment = Duration::from_secs(now);
            while let Some(tick) = episodes.next_tick().filter(|tick| *tick <= moment) {
                episodes.tick(tick, &mut effects);
                note(tick, &mut effects, &mut running);
            }
            give(&mut episodes, &task, &mut running, moment, input, &mut effects);
            note(moment, &mut effects, &mut running);
            match input {
                Input::Value { bad, clear, check } => model.value(now, (bad, clear, check)),
                Input::Nothing => {}
                end if model.acting() => model.ended(end, now),
                _ => {}
            }
            prop_assert_eq!(&told, &model.told);
            prop_assert_eq!(running.len(), usize::from(model.acting()));
        }
    }

    /// Many series and rules at once: what must never be, whatever happens.
    #[test]
    fn no_action_is_doubled(
        task in task(),
        happens in prop::collection::vec((0..20_u64, 0..2_usize, 0..4_usize, 0..8_u8, any::<bool>()), 1..200),
    ) {
        let task = Task { dry_run: false, ..task };
        let rules = ["r", "q"];
        let series = ["a", "b", "c", "d"];
        let mut episodes = Episodes::new(false);
        let mut flying: Vec<Run> = Vec::new();
        let mut starts: Vec<(Moment, Run)> = Vec::new();
        let mut now = Moment::ZERO;
        for (pause, rule, one, what, flag) in happens {
            now += Duration::from_secs(pause);
            let mut effects = Vec::new();
            episodes.tick(now, &mut effects);
            match what {
                0..5 => {
                    let seen = Seen {
                        measured: now,
                        now,
                        interval: (one > 0).then(|| Duration::from_secs(INTERVAL)),
                    };
                    let verdict = Verdict {
                        task: (what > 0).then(|| task.clone()),
                        clear: Some(flag),
                        check: Some(flag),
                    };
                    episodes.evaluate(rules[rule], series[one], seen, verdict, &mut effects);
                }
                5 | 6 if !flying.is_empty() => {
                    let run = flying.remove(one % flying.len());
                    let ended = match flag {
                        true => Ended::Succeeded,
                        false => Ended::Failed("exit".into()),
                    };
                    episodes.finished(run.id, &ended, now, &mut effects);
                }
                7 if flag => episodes.retain(|name| name == "r"),
                7 => episodes.reloaded("r"),
                _ => {}
            }
            // Its steps may all be due at once, but there are only so many.
            for _ in 0..4 {
                episodes.tick(now, &mut effects);
            }
            for effect in effects {
                let Effect::Run(run) = effect else { continue };
                let same = |other: &Run| other.rule == run.rule && other.action == run.action;
                prop_assert!(!flying.iter().any(same), "{run:?} runs twice");
                if &*run.rule == "r" {
                    let earlier: Vec<_> =
                        starts.iter().filter(|(_, other)| same(other)).map(|(at, _)| *at).collect();
                    if let Some(last) = earlier.last() {
                        prop_assert!(now >= *last + task.cooldown);
                    }
                    if let Some(most) = task.max_per_hour {
                        let recent = earlier.iter().filter(|at| **at + HOUR > now);
                        prop_assert!(recent.count() < most as usize);
                    }
                }
                starts.push((now, run.clone()));
                flying.push(run);
            }
            prop_assert_eq!(episodes.running(), flying.len());
            let entries: usize = episodes.rules.values().map(|rule| rule.series.len()).sum();
            prop_assert_eq!(episodes.len(), entries);
            prop_assert_eq!(episodes.wakes.len(), entries);
            let actions: usize = episodes.rules.values().map(|rule| rule.ledgers.len()).sum();
            prop_assert_eq!(episodes.actions, actions);
            prop_assert!(episodes.next_tick().is_none_or(|tick| tick > now), "it does not come to rest");
        }
    }
}
