//! From what handlers say about a value to what their episodes make of it.

use std::collections::HashMap;
use std::sync::Arc;

use super::episode::{Effect, Episodes, Seen, Verdict};
use super::{Evaluate, Fault, Subject};

/// Asks these handlers about a subject, and tells the episodes of their rules. Gives back who has failed: of whom
/// nobody knows what they would have said.
pub(super) fn consult<E: Evaluate>(
    evaluate: &mut E,
    ids: &[usize],
    names: &[Arc<str>],
    subject: &Subject,
    seen: impl FnOnce() -> Seen,
    episodes: &mut Episodes<E::Function>,
    effects: &mut Vec<Effect>,
) -> Vec<(usize, Fault)> {
    let mut faults = Vec::new();
    let answers = evaluate.call(ids, subject);
    if answers.is_empty() && episodes.is_empty() {
        return faults;
    }
    let series = subject.identifier();
    let seen = seen();
    let mut answers: HashMap<usize, _> = answers.into_iter().collect();
    for id in ids {
        let Some(name) = names.get(*id) else {
            continue;
        };
        let task = match answers.remove(id) {
            None => None,
            Some(Ok(task)) => Some(task),
            Some(Err(fault)) => {
                faults.push((*id, fault));
                continue;
            }
        };
        let ask = episodes.ask(name, &series);
        let (clear, check) = (ask.clear.cloned(), ask.check.cloned());
        let mut answer = |function: Option<E::Function>| {
            let answer = evaluate.ask(&function?, subject);
            answer.map_err(|fault| faults.push((*id, fault))).ok()
        };
        let verdict = Verdict {
            task,
            clear: answer(clear),
            check: answer(check),
        };
        episodes.evaluate(name, &series, seen, verdict, effects);
    }
    faults
}
