//! Stories: what comes in at which second, and what is done about it.

use super::*;

/// The rules' functions have names here.
pub(super) type Named = Task<&'static str>;

pub(super) fn command(name: &str) -> Action {
    Action::Command {
        host: None,
        service: "web".into(),
        command: name.into(),
        params: BTreeMap::new(),
    }
}

fn restart() -> Named {
    Task::new(command("restart"))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What is done, in a word or two.
pub(super) fn words(effect: &Effect) -> String {
    let dry = |dry: bool| if dry { "would " } else { "" };
    match effect {
        Effect::Run(run) => format!("{}run {}", dry(run.dry), run.action),
        Effect::Report(report) => {
            let event = match &report.event {
                Event::Recovered { action, after } => {
                    format!("recovered by {action} in {}", after.as_secs())
                }
                Event::Escalated { why, .. } => format!("escalate: {why}"),
                Event::GaveUp { why, .. } => format!("give up: {why}"),
                Event::Cleared => "cleared".to_owned(),
                Event::Exhausted { .. } => "exhausted".to_owned(),
                Event::Loop => "loop".to_owned(),
                Event::Crowded => "crowded".to_owned(),
            };
            format!("{}{event}", dry(report.dry))
        }
    }
}

struct Teller {
    episodes: Episodes<&'static str>,
    task: Named,
    interval: Option<Duration>,
    /// Actions that have not ended, in the order in which they were started.
    running: VecDeque<RunId>,
    told: Vec<String>,
}

impl Teller {
    fn new(task: Named) -> Self {
        Self {
            episodes: Episodes::new(false),
            task,
            interval: Some(seconds(10)),
            running: VecDeque::new(),
            told: Vec::new(),
        }
    }

    fn done(&mut self, at: Moment, effects: Vec<Effect>) {
        for effect in effects {
            if let Effect::Run(Run { id, dry: false, .. }) = effect {
                self.running.push_back(id);
            }
            self.told
                .push(format!("{} {}", at.as_secs(), words(&effect)));
        }
    }

    /// One thing happens: `bad` and `good` are values, of series `s` or the one behind a colon; `clear` and
    /// `check` are good values that the functions of that name say yes to, `bad+check` a bad one.
    fn happens(&mut self, at: u64, what: &str) {
        let now = seconds(at);
        while let Some(tick) = self.episodes.next_tick().filter(|tick| *tick <= now) {
            let mut effects = Vec::new();
            self.episodes.tick(tick, &mut effects);
            self.done(tick, effects);
        }
        let mut effects = Vec::new();
        let (what, series) = what.split_once(':').unwrap_or((what, "s"));
        let end = match what.split_once(' ').unwrap_or((what, "")) {
            ("ok", _) => Some(Ended::Succeeded),
            ("exit", status) => Some(Ended::Failed(format!("exit {status}"))),
            ("refused", _) => Some(Ended::NotRun("refused".into())),
            _ => None,
        };
        if let Some(end) = end {
            let id = self.running.pop_front().expect("an action that runs");
            self.episodes.finished(id, &end, now, &mut effects);
        } else if what != "wait" {
            let ask = self.episodes.ask("r", series);
            let says = |function: Option<&&str>| function.map(|name| what.contains(name));
            let (clear, check) = (says(ask.clear), says(ask.check));
            let task = what.contains("bad").then(|| self.task.clone());
            let seen = Seen {
                measured: now,
                now,
                interval: self.interval,
            };
            let verdict = Verdict { task, clear, check };
            self.episodes
                .evaluate("r", series, seen, verdict, &mut effects);
        }
        self.done(now, effects);
    }
}

/// What is done when all this happens.
fn told(mut teller: Teller, happens: &[(u64, &str)]) -> Vec<String> {
    for (at, what) in happens {
        teller.happens(*at, what);
    }
    teller.told
}

fn story(task: Named, happens: &[(u64, &str)], expected: &[&str]) {
    assert_eq!(told(Teller::new(task), happens), expected);
}

#[test]
fn a_plain_task_runs_for_each_value_but_never_beside_itself() {
    story(
        restart(),
        &[
            (0, "bad"),
            (10, "bad"),
            (20, "bad"),
            (25, "exit 1"),
            (30, "bad"),
            (31, "ok"),
            (40, "good"),
            (50, "bad"),
        ],
        &[
            "0 run web restart",
            "30 run web restart",
            "50 run web restart",
        ],
    );
}

#[test]
fn an_action_is_not_started_for_two_series_at_once() {
    story(
        restart(),
        &[
            (0, "bad:a"),
            (1, "bad:b"),
            (5, "ok"),
            (10, "bad:a"),
            (11, "bad:b"),
        ],
        &["0 run web restart", "10 run web restart"],
    );
}

#[test]
fn actions_that_differ_may_run_beside_each_other() {
    let mut teller = Teller::new(restart());
    teller.happens(0, "bad:a");
    teller.task = Task::new(command("reload"));
    teller.happens(1, "bad:b");
    assert_eq!(teller.told, ["0 run web restart", "1 run web reload"]);
}

#[test]
fn a_condition_must_hold_for_some_time() {
    let task = Task {
        hold: seconds(30),
        ..restart()
    };
    story(
        task,
        &[
            (0, "bad"),
            (10, "bad"),
            (20, "good"),
            (30, "bad"),
            (40, "bad"),
            (50, "bad"),
            (60, "bad"),
            // It counts from the action's end.
            (61, "ok"),
            (70, "bad"),
            (90, "bad"),
            (99, "bad"),
            (100, "bad"),
        ],
        &["60 run web restart", "100 run web restart"],
    );
}

#[test]
fn a_condition_does_not_hold_while_nobody_looks() {
    let task = Task {
        hold: seconds(30),
        ..restart()
    };
    story(
        task,
        &[
            (0, "bad"),
            (10, "bad"),
            (41, "bad"),
            (51, "bad"),
            (71, "bad"),
        ],
        &["71 run web restart"],
    );
}

#[test]
fn so_many_of_the_last_values() {
    let task = Task {
        times: Some(Times { hits: 3, of: 5 }),
        ..restart()
    };
    story(
        task,
        &[
            (0, "bad"),
            (10, "good"),
            (20, "bad"),
            (30, "good"),
            (40, "good"),
            (50, "bad"),
            (60, "good"),
            (70, "bad"),
            (80, "bad"),
            (81, "ok"),
            (90, "bad"),
            (100, "bad"),
            (110, "bad"),
        ],
        &["80 run web restart", "110 run web restart"],
    );
}

#[test]
fn an_action_rests() {
    let task = Task {
        cooldown: seconds(60),
        ..restart()
    };
    story(
        task,
        &[
            (0, "bad:a"),
            (5, "ok"),
            (10, "bad:a"),
            (20, "bad:b"),
            (59, "bad:a"),
            (60, "bad:b"),
        ],
        &["0 run web restart", "60 run web restart"],
    );
}

#[test]
fn an_action_has_a_budget_for_an_hour() {
    let task = Task {
        max_per_hour: Some(2),
        ..restart()
    };
    story(
        task,
        &[
            (0, "bad"),
            (1, "ok"),
            (10, "bad"),
            (11, "ok"),
            (20, "bad"),
            (30, "bad"),
            (3599, "bad"),
            (3600, "bad"),
            (3601, "ok"),
            (3605, "bad"),
            (3610, "bad"),
        ],
        &[
            "0 run web restart",
            "10 run web restart",
            "20 exhausted",
            "3600 run web restart",
            "3605 exhausted",
            "3610 run web restart",
        ],
    );
}

fn verified() -> Named {
    Task {
        verify: Some(Verify {
            within: seconds(60),
            check: None,
        }),
        ..restart()
    }
}

#[test]
fn it_has_helped_when_the_value_is_good_again() {
    story(
        verified(),
        &[
            (0, "bad"),
            (5, "good"),
            (10, "bad"),
            (12, "exit 3"),
            (20, "bad"),
            (30, "good"),
            (40, "good"),
            // Another episode.
            (50, "bad"),
        ],
        &[
            "0 run web restart",
            "30 recovered by web restart in 18",
            "50 run web restart",
        ],
    );
}

#[test]
fn a_good_value_from_before_the_end_proves_nothing() {
    let mut teller = Teller::new(verified());
    teller.happens(0, "bad");
    teller.happens(20, "ok");
    let seen = Seen {
        measured: seconds(19),
        now: seconds(21),
        interval: Some(seconds(10)),
    };
    let mut effects = Vec::new();
    teller
        .episodes
        .evaluate("r", "s", seen, Verdict::default(), &mut effects);
    assert_eq!(effects, []);
    teller.happens(30, "good");
    assert_eq!(
        teller.told,
        ["0 run web restart", "30 recovered by web restart in 10"]
    );
}

fn escalating() -> Named {
    Task {
        escalate: vec![command("reset"), command("reboot")],
        ..verified()
    }
}

#[test]
fn what_does_not_help_is_followed_by_the_next_step_and_at_last_by_silence() {
    story(
        escalating(),
        &[
            (0, "bad"),
            (1, "ok"),
            (30, "bad"),
            (60, "bad"),
            (70, "bad"),
            (75, "exit 1"),
            (130, "bad"),
            (140, "bad"),
            (145, "ok"),
            (200, "bad"),
            (210, "bad"),
            (300, "bad"),
            (4000, "bad"),
            (8000, "good"),
            (8010, "bad"),
        ],
        &[
            "0 run web restart",
            "61 escalate: no recovery within 60 s",
            "61 run web reset",
            "135 escalate: no recovery within 60 s",
            "135 run web reboot",
            "205 give up: no recovery within 60 s",
            "8000 cleared",
            "8010 run web restart",
        ],
    );
}

#[test]
fn the_second_step_may_be_the_one_that_helps() {
    story(
        escalating(),
        &[
            (0, "bad"),
            (1, "ok"),
            (60, "bad"),
            (62, "ok"),
            (70, "good"),
            (80, "bad"),
        ],
        &[
            "0 run web restart",
            "61 escalate: no recovery within 60 s",
            "61 run web reset",
            "70 recovered by web reset in 8",
            "80 run web restart",
        ],
    );
}

#[test]
fn what_was_not_run_is_not_waited_for() {
    story(
        escalating(),
        &[
            (0, "bad"),
            (1, "refused"),
            (2, "refused"),
            (3, "refused"),
            (10, "bad"),
        ],
        &[
            "0 run web restart",
            "1 escalate: refused",
            "1 run web reset",
            "2 escalate: refused",
            "2 run web reboot",
            "3 give up: refused",
        ],
    );
}

#[test]
fn without_verify_the_exit_status_tells() {
    let task = Task {
        escalate: vec![command("reset")],
        ..restart()
    };
    story(
        task.clone(),
        &[
            (0, "bad"),
            (1, "exit 1"),
            (2, "ok"),
            (10, "bad"),
            (20, "bad"),
            (30, "good"),
            (40, "bad"),
        ],
        &[
            "0 run web restart",
            "1 escalate: exit 1",
            "1 run web reset",
            "40 run web restart",
        ],
    );
    story(
        task,
        &[
            (0, "bad"),
            (1, "exit 1"),
            (2, "exit 2"),
            (10, "bad"),
            (20, "good"),
        ],
        &[
            "0 run web restart",
            "1 escalate: exit 1",
            "1 run web reset",
            "2 give up: exit 2",
            "20 cleared",
        ],
    );
}

#[test]
fn nothing_is_escalated_while_all_looks_well() {
    let task = Task {
        escalate: vec![command("reset")],
        ..restart()
    };
    // The next value decides, or that there is none.
    story(
        task.clone(),
        &[
            (0, "bad"),
            (10, "good"),
            (11, "exit 1"),
            (20, "good"),
            (30, "good"),
        ],
        &[
            "0 run web restart",
            "11 escalate: exit 1",
            "20 recovered by web restart in 0",
        ],
    );
    story(
        task.clone(),
        &[(0, "bad"), (10, "good"), (11, "exit 1"), (20, "bad")],
        &[
            "0 run web restart",
            "11 escalate: exit 1",
            "20 run web reset",
        ],
    );
    story(
        task,
        &[(0, "bad"), (10, "good"), (11, "exit 1"), (50, "wait")],
        &[
            "0 run web restart",
            "11 escalate: exit 1",
            "41 run web reset",
        ],
    );
}

#[test]
fn an_episode_ends_where_clear_says_so() {
    let task = Task {
        clear: Some("clear"),
        ..restart()
    };
    story(
        task,
        &[
            (0, "bad"),
            (1, "ok"),
            (10, "good"),
            (20, "bad"),
            (30, "good"),
            (40, "clear"),
            (50, "good"),
            (60, "bad"),
        ],
        &["0 run web restart", "60 run web restart"],
    );
    // A value that is good, but not as good as that, is no recovery either.
    let task = Task {
        clear: Some("clear"),
        ..verified()
    };
    story(
        task,
        &[(0, "bad"), (1, "ok"), (10, "good"), (20, "clear")],
        &["0 run web restart", "20 recovered by web restart in 19"],
    );
}

#[test]
fn a_recovery_may_have_a_condition_of_its_own() {
    let task = Task {
        verify: Some(Verify {
            within: seconds(60),
            check: Some("check"),
        }),
        ..restart()
    };
    story(
        task,
        &[
            (0, "bad"),
            (1, "ok"),
            (10, "good"),
            (20, "bad+check"),
            (30, "bad"),
            (40, "good"),
            (50, "bad"),
        ],
        // It has helped, but until the condition has ended it is still the same fault.
        &[
            "0 run web restart",
            "20 recovered by web restart in 19",
            "50 run web restart",
        ],
    );
}

#[test]
fn a_step_waits_for_its_cooldown_and_runs_if_it_is_still_needed() {
    let task = Task {
        cooldown: seconds(100),
        ..verified()
    };
    story(
        task.clone(),
        &[
            (0, "bad"),
            (1, "ok"),
            (10, "good"),
            (20, "bad"),
            (30, "bad"),
            (90, "bad"),
            (101, "wait"),
        ],
        &[
            "0 run web restart",
            "10 recovered by web restart in 9",
            "100 run web restart",
        ],
    );
    story(
        task.clone(),
        &[
            (0, "bad"),
            (1, "ok"),
            (10, "good"),
            (20, "bad"),
            (30, "good"),
            (101, "wait"),
        ],
        &["0 run web restart", "10 recovered by web restart in 9"],
    );
    // The series has gone silent: nobody knows.
    story(
        task,
        &[
            (0, "bad"),
            (1, "ok"),
            (10, "good"),
            (20, "bad"),
            (101, "wait"),
        ],
        &["0 run web restart", "10 recovered by web restart in 9"],
    );
}

#[test]
fn two_series_with_one_fault_share_an_action() {
    story(
        verified(),
        &[
            (0, "bad:a"),
            (5, "bad:b"),
            (6, "ok"),
            (10, "good:a"),
            (15, "bad:b"),
            (25, "good:b"),
        ],
        &[
            "0 run web restart",
            "10 recovered by web restart in 4",
            "25 recovered by web restart in 19",
        ],
    );
}

#[test]
fn a_window_shorter_than_the_interval_does_not_hide_a_recovery() {
    let task = Task {
        verify: Some(Verify {
            within: seconds(2),
            check: None,
        }),
        escalate: vec![command("reboot")],
        ..restart()
    };
    story(
        task.clone(),
        &[(0, "bad"), (1, "ok"), (10, "bad"), (20, "good")],
        &["0 run web restart", "20 recovered by web restart in 19"],
    );
    let too_late = [
        "0 run web restart",
        "21 escalate: no recovery within 20 s",
        "21 run web reboot",
    ];
    story(
        task.clone(),
        &[
            (0, "bad"),
            (1, "ok"),
            (10, "bad"),
            (20, "bad"),
            (30, "good"),
        ],
        &too_late,
    );
    // A series that has gone silent has not recovered.
    story(task, &[(0, "bad"), (1, "ok"), (31, "wait")], &too_late);
}

#[test]
fn what_is_dry_is_only_told() {
    let task = Task {
        dry_run: true,
        ..restart()
    };
    story(
        task,
        &[(0, "bad"), (10, "bad")],
        &["0 would run web restart", "10 would run web restart"],
    );
    let task = Task {
        dry_run: true,
        ..escalating()
    };
    let happens = [
        (0, "bad"),
        (60, "bad"),
        (120, "bad"),
        (180, "bad"),
        (190, "good"),
    ];
    let expected = [
        "0 would run web restart",
        "60 would escalate: no recovery within 60 s",
        "60 would run web reset",
        "120 would escalate: no recovery within 60 s",
        "120 would run web reboot",
        "180 would give up: no recovery within 60 s",
        "190 would cleared",
    ];
    story(task, &happens, &expected);
    let shadow = Teller {
        episodes: Episodes::new(true),
        ..Teller::new(escalating())
    };
    assert_eq!(told(shadow, &happens), expected);
}

fn notified(task: Named) -> Teller {
    Teller {
        interval: None,
        ..Teller::new(task)
    }
}

#[test]
fn a_notification_is_a_reason_once() {
    let told = told(
        notified(restart()),
        &[
            (0, "bad"),
            (5, "bad"),
            (10, "ok"),
            (2000, "wait"),
            (2001, "bad"),
        ],
    );
    assert_eq!(told, ["0 run web restart", "2001 run web restart"]);
}

#[test]
fn what_a_notification_says_holds_until_another_one_comes() {
    let task = Task {
        hold: seconds(30),
        ..restart()
    };
    assert_eq!(
        told(
            notified(task.clone()),
            &[(0, "bad"), (29, "good"), (60, "wait")]
        ),
        [""; 0]
    );
    assert_eq!(
        told(notified(task), &[(0, "bad"), (60, "wait")]),
        ["30 run web restart"]
    );
}

#[test]
fn a_notification_tells_of_a_recovery_also_before_the_action_has_ended() {
    assert_eq!(
        told(
            notified(escalating()),
            &[(0, "bad"), (5, "good"), (6, "ok"), (100, "wait")]
        ),
        ["0 run web restart", "6 recovered by web restart in 0"]
    );
    assert_eq!(
        told(
            notified(escalating()),
            &[
                (0, "bad"),
                (6, "ok"),
                (30, "good"),
                (100, "wait"),
                (200, "bad")
            ]
        ),
        [
            "0 run web restart",
            "30 recovered by web restart in 24",
            "200 run web restart"
        ]
    );
    assert_eq!(
        told(
            notified(escalating()),
            &[(0, "bad"), (6, "ok"), (66, "wait"), (70, "good")]
        ),
        [
            "0 run web restart",
            "66 escalate: no recovery within 60 s",
            "66 run web reset"
        ]
    );
}

#[test]
fn two_that_answer_each_other_are_slowed_down() {
    let mut teller = notified(restart());
    // The command ends, something reacts to that, the rule reacts to it.
    for round in 0..600 {
        let running = teller.running.len();
        teller.happens(round, "bad");
        if teller.running.len() > running {
            teller.happens(round, "ok");
        }
    }
    let runs = teller
        .told
        .iter()
        .filter(|told| told.contains("run"))
        .count();
    assert_eq!(runs, 60 + 59, "at once, and one each ten seconds");
    let loops = teller
        .told
        .iter()
        .filter(|told| told.contains("loop"))
        .count();
    assert_eq!(loops, 1);
    // A pause, and it is as before.
    teller.told.clear();
    teller.happens(5000, "bad");
    assert_eq!(teller.told, ["5000 run web restart"]);
}

#[test]
fn what_runs_is_not_started_again_by_a_rule_that_has_been_away() {
    let mut teller = Teller::new(restart());
    teller.happens(0, "bad");
    teller.episodes.retain(|_| false);
    assert!(teller.episodes.is_empty());
    teller.happens(10, "bad");
    teller.happens(11, "ok");
    teller.happens(20, "bad");
    assert_eq!(teller.told, ["0 run web restart", "20 run web restart"]);
}

#[test]
fn an_episode_outlives_a_change_of_its_rule() {
    let task = Task {
        clear: Some("clear"),
        verify: Some(Verify {
            within: seconds(60),
            check: Some("check"),
        }),
        ..restart()
    };
    let mut teller = Teller::new(task);
    teller.happens(0, "bad");
    teller.happens(1, "ok");
    teller.episodes.reloaded("r");
    // The functions of the rule as it was are gone: the condition decides until it returns others.
    assert_eq!(
        teller.episodes.ask("r", "s"),
        Ask {
            clear: None,
            check: None
        }
    );
    teller.happens(10, "bad");
    assert_eq!(
        teller.episodes.ask("r", "s"),
        Ask {
            clear: Some(&"clear"),
            check: Some(&"check")
        }
    );
    teller.happens(20, "good");
    teller.happens(30, "clear+check");
    assert_eq!(
        teller.told,
        ["0 run web restart", "30 recovered by web restart in 29"]
    );
}

#[test]
fn series_that_vanish_are_forgotten() {
    let task = Task {
        hold: seconds(30),
        ..restart()
    };
    let mut teller = Teller::new(task);
    teller.happens(0, "bad:a");
    assert_eq!(teller.episodes.len(), 1);
    teller.happens(601, "wait");
    assert_eq!(teller.episodes.len(), 0);

    let mut teller = Teller::new(escalating());
    for (at, what) in [
        (0, "bad"),
        (1, "refused"),
        (1, "refused"),
        (1, "refused"),
        (80_000, "wait"),
    ] {
        teller.happens(at, what);
    }
    assert_eq!(teller.episodes.len(), 1);
    teller.happens(90_000, "wait");
    assert_eq!(teller.episodes.len(), 0);
    assert!(teller.episodes.next_tick().is_none());
}

#[test]
fn too_many_series_are_refused_and_counted() {
    let mut teller = Teller::new(Task {
        hold: seconds(30),
        ..restart()
    });
    for number in 0..MAX_SERIES + 5 {
        teller.happens(0, &format!("bad:{number}"));
    }
    assert_eq!(
        (teller.episodes.len(), teller.episodes.refused()),
        (MAX_SERIES, 5)
    );
    assert_eq!(teller.told, ["0 crowded"]);
    teller.happens(1000, "wait");
    assert!(teller.episodes.is_empty());
}

#[test]
fn actions_without_end_take_bounded_memory() {
    let mut teller = Teller::new(restart());
    for number in 0..3 * u64::try_from(MAX_ACTIONS).unwrap() {
        teller.task = Task::new(command(&number.to_string()));
        teller.happens(number, "bad");
        if !teller.running.is_empty() {
            teller.happens(number, "ok");
        }
        assert!(teller.episodes.actions <= MAX_ACTIONS);
    }
    assert!(
        teller.told.len() > 3 * MAX_ACTIONS - 10,
        "{}",
        teller.told.len()
    );
}
