//! Which handlers a value or a notification is for.
//!
//! It is decided here, before anything is queued or built for Lua. Handlers that name a field exactly are
//! found by hashing; what has been found for a series is remembered, so that patterns are looked at once for
//! each series and not once for each value. A value that nobody wants costs one look-up.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashTable;

use super::glob::Pattern;

/// How many series are remembered. A host has some hundreds, a server of collectd's network plugin many more.
const MAX_SERIES: usize = 65_536;
/// The memory is in so many parts, each with its own lock, so that write threads seldom meet.
const SHARDS: usize = 16;
/// More combinations of exact names than this are not spread out: one of the fields is looked at instead.
const MAX_COMBINATIONS: usize = 64;

/// What a match may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The host that it is about.
    Host,
    /// The plugin that it is named after.
    Plugin,
    /// Which of that plugin's instances.
    PluginInstance,
    /// The type.
    Type,
    /// Which of that type.
    TypeInstance,
    /// The plugin that dispatched it, which may be another one.
    Origin,
    /// How bad it is: `FAILURE`, `WARNING` or `OKAY`. Values have none.
    Severity,
}

impl Field {
    /// All of them, in the order in which a [`Subject`] has them.
    pub const ALL: [Field; 7] = [
        Field::Host,
        Field::Plugin,
        Field::PluginInstance,
        Field::Type,
        Field::TypeInstance,
        Field::Origin,
        Field::Severity,
    ];

    /// Its name in a rule.
    pub fn name(self) -> &'static str {
        match self {
            Field::Host => "host",
            Field::Plugin => "plugin",
            Field::PluginInstance => "plugin_instance",
            Field::Type => "type",
            Field::TypeInstance => "type_instance",
            Field::Origin => "origin",
            Field::Severity => "severity",
        }
    }

    /// The field of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// What is matched: the fields of a value or a notification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject<'a> {
    /// In the order of [`Field::ALL`]. What is unknown is empty.
    pub fields: [&'a str; Field::ALL.len()],
    /// Whether it comes from another host, or from a user who might not be trusted.
    pub foreign: bool,
}

impl Subject<'_> {
    fn hash(&self, state: &RandomState) -> u64 {
        let mut hasher = state.build_hasher();
        for field in self.fields {
            field.hash(&mut hasher);
        }
        self.foreign.hash(&mut hasher);
        hasher.finish()
    }
}

/// What a field must be: one of these names or patterns, and none of those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Criterion {
    /// Empty where everything will do.
    any: Vec<Pattern>,
    none: Vec<Pattern>,
}

impl Criterion {
    fn new<S: AsRef<str>>(patterns: &[S]) -> Self {
        let mut criterion = Self::default();
        for pattern in patterns {
            match pattern.as_ref().strip_prefix('!') {
                Some(rest) => criterion.none.push(Pattern::new(rest)),
                None => criterion.any.push(Pattern::new(pattern.as_ref())),
            }
        }
        criterion
    }

    fn matches(&self, name: &str) -> bool {
        (self.any.is_empty() || self.any.iter().any(|pattern| pattern.matches(name)))
            && !self.none.iter().any(|pattern| pattern.matches(name))
    }

    /// The names that it may be, if there is no pattern among them.
    fn names(&self) -> Option<Vec<&str>> {
        let names = self.any.iter().map(|pattern| match pattern {
            Pattern::Exact(name) => Some(&**name),
            Pattern::Glob(_) => None,
        });
        let mut names: Vec<_> = names.collect::<Option<_>>()?;
        names.sort_unstable();
        names.dedup();
        (!names.is_empty()).then_some(names)
    }
}

/// What a handler wants to see. The default is everything that is not foreign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    criteria: [Criterion; Field::ALL.len()],
    foreign: bool,
}

impl Match {
    /// Wants a field to be one of these names or patterns. In a pattern, `*` is any run of characters, `?` any
    /// one, `\` takes the next as it is, and `!` before a pattern excludes what it matches.
    ///
    /// Whoever asks for an origin is taken to know that it may be foreign.
    #[must_use]
    pub fn with<S: AsRef<str>>(mut self, field: Field, patterns: &[S]) -> Self {
        self.criteria[field as usize] = Criterion::new(patterns);
        if field == Field::Origin {
            self.foreign = true;
        }
        self
    }

    /// Whether to take what is foreign, too.
    #[must_use]
    pub fn with_foreign(mut self, foreign: bool) -> Self {
        self.foreign = foreign;
        self
    }

    /// The plain evaluation, which the index must agree with.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        (self.foreign || !subject.foreign)
            && self
                .criteria
                .iter()
                .zip(subject.fields)
                .all(|(criterion, field)| criterion.matches(field))
    }

    /// The fields that may only have certain names, with those, as long as their combinations are not too many.
    fn exact(&self) -> Vec<(Field, Vec<&str>)> {
        let mut exact: Vec<_> = Field::ALL
            .into_iter()
            .filter_map(|field| Some((field, self.criteria[field as usize].names()?)))
            .collect();
        let combinations = |exact: &[(Field, Vec<&str>)]| {
            exact
                .iter()
                .fold(1_usize, |all, (_, names)| all.saturating_mul(names.len()))
        };
        while combinations(&exact) > MAX_COMBINATIONS {
            let widest = (0..exact.len()).max_by_key(|at| exact[*at].1.len());
            exact.remove(widest.unwrap_or_default());
        }
        exact
    }
}

/// The handlers that want something, by number in the order in which they were given.
pub type Found = Arc<[usize]>;

/// The handlers that name the same fields exactly, by those names.
#[derive(Debug)]
struct Group {
    fields: Vec<Field>,
    by_names: HashTable<(Vec<Box<str>>, Vec<usize>)>,
}

impl Group {
    fn hash<'a>(state: &RandomState, names: impl Iterator<Item = &'a str>) -> u64 {
        let mut hasher = state.build_hasher();
        names.for_each(|name| name.hash(&mut hasher));
        hasher.finish()
    }

    fn insert(&mut self, state: &RandomState, names: &[&str], handler: usize) {
        let hash = Self::hash(state, names.iter().copied());
        let same = |entry: &(Vec<Box<str>>, Vec<usize>)| {
            entry.0.iter().map(|name| &**name).eq(names.iter().copied())
        };
        if let Some((_, handlers)) = self.by_names.find_mut(hash, same) {
            handlers.push(handler);
            return;
        }
        let names = names.iter().map(|name| (*name).into()).collect();
        let rehash = |entry: &(Vec<Box<str>>, Vec<usize>)| {
            Self::hash(state, entry.0.iter().map(|name| &**name))
        };
        self.by_names
            .insert_unique(hash, (names, vec![handler]), rehash);
    }

    fn find(&self, state: &RandomState, subject: &Subject<'_>) -> &[usize] {
        let names = || {
            self.fields
                .iter()
                .map(|field| subject.fields[*field as usize])
        };
        let hash = Self::hash(state, names());
        let found = self
            .by_names
            .find(hash, |entry| entry.0.iter().map(|name| &**name).eq(names()));
        found.map_or(&[], |(_, handlers)| handlers)
    }
}

/// What was found for a series.
#[derive(Debug)]
struct Remembered {
    hash: u64,
    /// The fields, one behind the other.
    text: Box<str>,
    ends: [u32; Field::ALL.len()],
    foreign: bool,
    found: Option<Found>,
    /// Asked for since the memory was last full.
    used: AtomicBool,
}

impl Remembered {
    fn new(hash: u64, subject: &Subject<'_>, found: Option<Found>) -> Self {
        let mut ends = [0; Field::ALL.len()];
        let mut length = 0;
        for (end, field) in ends.iter_mut().zip(subject.fields) {
            length += field.len();
            *end = u32::try_from(length).unwrap_or(u32::MAX);
        }
        Self {
            hash,
            text: subject.fields.concat().into(),
            ends,
            foreign: subject.foreign,
            found,
            used: AtomicBool::new(true),
        }
    }

    fn is_of(&self, subject: &Subject<'_>) -> bool {
        let mut start = 0;
        self.foreign == subject.foreign
            && self.ends.iter().zip(subject.fields).all(|(end, field)| {
                let piece = self.text.get(start..*end as usize);
                start = *end as usize;
                piece == Some(field)
            })
    }
}

/// Finds the handlers that want a value or a notification. It is never changed: other rules are another index.
#[derive(Debug)]
pub struct Index {
    matches: Vec<Match>,
    groups: Vec<Group>,
    state: RandomState,
    remembered: [RwLock<HashTable<Remembered>>; SHARDS],
    misses: AtomicU64,
}

impl Index {
    /// An index of these handlers.
    pub fn new(matches: Vec<Match>) -> Self {
        let state = RandomState::new();
        let mut groups: Vec<Group> = Vec::new();
        for (handler, wanted) in matches.iter().enumerate() {
            let exact = wanted.exact();
            let fields: Vec<_> = exact.iter().map(|(field, _)| *field).collect();
            let at = match groups.iter().position(|group| group.fields == fields) {
                Some(at) => at,
                None => {
                    groups.push(Group {
                        fields,
                        by_names: HashTable::new(),
                    });
                    groups.len() - 1
                }
            };
            let mut combinations: Vec<Vec<&str>> = vec![Vec::new()];
            for (_, names) in &exact {
                combinations = combinations
                    .into_iter()
                    .flat_map(|before| {
                        names.iter().map(move |name| {
                            let mut combination = before.clone();
                            combination.push(name);
                            combination
                        })
                    })
                    .collect();
            }
            for names in combinations {
                groups[at].insert(&state, &names, handler);
            }
        }
        Self {
            matches,
            groups,
            state,
            remembered: Default::default(),
            misses: AtomicU64::new(0),
        }
    }

    /// How many handlers there are.
    pub fn len(&self) -> usize {
        self.matches.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.matches.is_empty()
    }

    /// How often nothing was remembered of a series, and the handlers had to be looked at.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// The handlers that want this, or none where nobody does.
    pub fn find(&self, subject: &Subject<'_>) -> Option<Found> {
        if self.matches.is_empty() {
            return None;
        }
        let hash = subject.hash(&self.state);
        // The low bits choose the place in a table, so the shard is chosen by others.
        let shard = &self.remembered[(hash >> 48) as usize % SHARDS];
        {
            // Entries are put in whole, so a panic elsewhere leaves nothing half done.
            let table = shard.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = table.find(hash, |entry| entry.is_of(subject)) {
                if !entry.used.load(Ordering::Relaxed) {
                    entry.used.store(true, Ordering::Relaxed);
                }
                return entry.found.clone();
            }
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let found = self.search(subject);
        let entry = Remembered::new(hash, subject, found.clone());
        let mut table = shard.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been here in between.
        if table.find(hash, |entry| entry.is_of(subject)).is_none() {
            if table.len() >= MAX_SERIES / SHARDS {
                make_room(&mut table);
            }
            table.insert_unique(hash, entry, |entry| entry.hash);
        }
        found
    }

    /// Looks at the handlers that may want this.
    fn search(&self, subject: &Subject<'_>) -> Option<Found> {
        let mut found: Vec<usize> = self
            .groups
            .iter()
            .flat_map(|group| group.find(&self.state, subject))
            .copied()
            .filter(|handler| self.matches[*handler].matches(subject))
            .collect();
        found.sort_unstable();
        (!found.is_empty()).then(|| found.into())
    }

    #[cfg(test)]
    fn remembered(&self) -> usize {
        self.remembered
            .iter()
            .map(|shard| shard.read().unwrap().len())
            .sum()
    }
}

/// Forgets series that nobody has asked for since the last time, or else every other one.
fn make_room(table: &mut HashTable<Remembered>) {
    table.retain(|entry| std::mem::take(entry.used.get_mut()));
    if table.len() > MAX_SERIES / SHARDS * 7 / 8 {
        let mut keep = false;
        table.retain(|_| {
            keep = !keep;
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value<'a>(plugin: &'a str, instance: &'a str, type_instance: &'a str) -> Subject<'a> {
        Subject {
            fields: ["h", plugin, instance, "t", type_instance, plugin, ""],
            foreign: false,
        }
    }

    #[test]
    fn handlers_are_found_in_their_order() {
        let index = Index::new(vec![
            Match::default().with(Field::TypeInstance, &["free", "used"]),
            Match::default().with(Field::Plugin, &["memory"]),
            Match::default(),
            Match::default().with(Field::Plugin, &["cpu", "mem*"]),
            Match::default()
                .with(Field::Plugin, &["memory"])
                .with(Field::TypeInstance, &["!free"]),
        ]);
        let find = |subject| index.find(&subject).map(|found| found.to_vec());
        assert_eq!(find(value("memory", "", "free")), Some(vec![0, 1, 2, 3]));
        assert_eq!(find(value("memory", "", "used")), Some(vec![0, 1, 2, 3, 4]));
        assert_eq!(find(value("cpu", "0", "idle")), Some(vec![2, 3]));
        assert_eq!(find(value("df", "", "")), Some(vec![2]));
        assert_eq!(index.misses(), 4);
        assert_eq!(find(value("df", "", "")), Some(vec![2]));
        assert_eq!(index.misses(), 4);
    }

    #[test]
    fn fields_do_not_run_into_one_another() {
        let index = Index::new(vec![Match::default()
            .with(Field::Plugin, &["ab"])
            .with(Field::PluginInstance, &["c"])]);
        assert!(index.find(&value("ab", "c", "")).is_some());
        assert!(index.find(&value("a", "bc", "")).is_none());
        assert!(index.find(&value("abc", "", "")).is_none());
        assert!(index.find(&value("ab", "", "c")).is_none());
        assert!(index.find(&value("ab", "c", "")).is_some());
    }

    #[test]
    fn what_is_foreign_must_be_asked_for() {
        let foreign = Subject {
            fields: ["web1", "load", "", "load", "", "network", ""],
            foreign: true,
        };
        let load = || Match::default().with(Field::Plugin, &["load"]);
        for (wanted, expected) in [
            (Match::default(), false),
            (load(), false),
            (load().with_foreign(true), true),
            (load().with(Field::Origin, &["network"]), true),
            (load().with(Field::Origin, &["unixsock"]), false),
            (
                load().with(Field::Origin, &["*"]).with_foreign(false),
                false,
            ),
        ] {
            let index = Index::new(vec![wanted.clone()]);
            assert_eq!(index.find(&foreign).is_some(), expected, "{wanted:?}");
        }
        // The same fields from here are another thing.
        let index = Index::new(vec![load()]);
        let local = Subject {
            foreign: false,
            ..foreign
        };
        assert!(index.find(&foreign).is_none() && index.find(&local).is_some());
        assert!(index.find(&foreign).is_none());
    }

    #[test]
    fn series_without_end_take_bounded_memory() {
        let index = Index::new(vec![Match::default().with(Field::Plugin, &["p"])]);
        let often = value("p", "often", "");
        for number in 0..MAX_SERIES * 5 / 4 {
            let instance = number.to_string();
            assert!(index.find(&value("p", &instance, "")).is_some());
            if number % 64 == 0 {
                index.find(&often);
            }
        }
        assert!(index.remembered() <= MAX_SERIES);
        let misses = index.misses();
        index.find(&often);
        assert_eq!(index.misses(), misses, "a series in use was forgotten");
    }

    #[test]
    fn long_lists_are_not_multiplied() {
        let names: Vec<_> = (0..1000).map(|number| number.to_string()).collect();
        let wanted = Match::default()
            .with(Field::Plugin, &names)
            .with(Field::PluginInstance, &names)
            .with(Field::TypeInstance, &["x"]);
        let index = Index::new(vec![wanted]);
        assert_eq!(index.groups.len(), 1);
        assert_eq!(index.groups[0].fields, [Field::TypeInstance]);
        assert!(index.find(&value("3", "999", "x")).is_some());
        assert!(index.find(&value("3", "1000", "x")).is_none());
    }

    fn patterns() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("!?[ab*?]{0,2}", 0..4)
    }

    fn wanted() -> impl Strategy<Value = Match> {
        let fields = prop::collection::vec((0..7_usize, patterns()), 0..4);
        (fields, any::<Option<bool>>()).prop_map(|(fields, foreign)| {
            let mut wanted = Match::default();
            for (field, patterns) in fields {
                wanted = wanted.with(Field::ALL[field], &patterns);
            }
            match foreign {
                Some(foreign) => wanted.with_foreign(foreign),
                None => wanted,
            }
        })
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_plain_evaluation(
            matches in prop::collection::vec(wanted(), 0..40),
            subjects in prop::collection::vec((prop::array::uniform7("[ab]{0,2}"), any::<bool>()), 1..40),
        ) {
            let index = Index::new(matches.clone());
            // The second round finds what is remembered.
            for (fields, foreign) in subjects.iter().chain(&subjects) {
                let subject = Subject {
                    fields: std::array::from_fn(|at| fields[at].as_str()),
                    foreign: *foreign,
                };
                let plain: Vec<usize> = (0..)
                    .zip(&matches)
                    .filter(|(_, wanted)| wanted.matches(&subject))
                    .map(|(handler, _)| handler)
                    .collect();
                let found = index.find(&subject).map_or(Vec::new(), |found| found.to_vec());
                prop_assert_eq!(found, plain);
            }
        }
    }
}
