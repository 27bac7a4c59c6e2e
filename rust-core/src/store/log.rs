//! Records in a file of fixed size.
//!
//! The file has two halves. Records are appended to one; when it is full, those that still matter are written
//! to the other, which then takes over. A half has a header, and takes over when its header is written, so
//! that a crash at any moment leaves one of the two in force. Nothing is ever allocated after the file was
//! made, so a full filesystem does not matter.
//!
//! Everything is checked by a CRC. Records also have the generation of their half: what is left of an older
//! one is not mistaken for theirs. So no generation may be used twice, also where a half was only begun, or its
//! header cannot be read any more. A damaged record is skipped, and those behind it are still found. Where the
//! header is damaged, the records tell the generation.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::crc::crc32;

/// The header has a block for itself.
const HEADER: usize = 4096;
const MAGIC: [u8; 8] = *b"clvjrnl\n";
/// The version of this layout. What the records say has room to grow in itself.
const VERSION: u32 = 1;
/// Magic, version, zero, length of a half, generation, CRC of all that.
const HEADER_USED: usize = 36;
/// CRC of the rest, length of the payload, generation, number.
const FRAME: usize = 24;
const ALIGNMENT: usize = 8;
/// How much is written at once when a half is begun: memory for all of it would stay with libc.
const CHUNK: usize = 64 * 1024;
/// No half counts so far, and what does was never written here.
const MAX_GENERATION: u64 = u64::MAX / 2;

/// Where the bytes are.
#[derive(Debug)]
pub(super) enum Medium {
    File(File),
    /// Where no file can be had. Ends with the process.
    Memory(Vec<u8>),
}

impl Medium {
    fn read(&self, at: usize, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_into(at, &mut bytes)?;
        Ok(bytes)
    }

    fn read_into(&self, at: usize, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Medium::File(file) => file.read_exact_at(bytes, at as u64)?,
            Medium::Memory(memory) => {
                let part = memory.get(at..at + bytes.len());
                bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
        }
        Ok(())
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        match self {
            Medium::File(file) => file.write_all_at(bytes, at as u64),
            Medium::Memory(memory) => {
                let part = memory.get_mut(at..at + bytes.len());
                part.ok_or(io::ErrorKind::WriteZero)?.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Medium::File(file) => file.sync_data(),
            Medium::Memory(_) => Ok(()),
        }
    }
}

/// Where a record is. Valid until the halves change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    at: usize,
    length: usize,
}

impl Place {
    /// How much room the record takes.
    pub(super) fn size(self) -> usize {
        size(self.length)
    }
}

/// How much room a payload takes.
pub(super) fn size(payload: usize) -> usize {
    (FRAME + payload).next_multiple_of(ALIGNMENT)
}

/// Why a log cannot be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    Io(io::Error),
    /// It is of a version that is not known here.
    Version(u32),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        OpenError::Io(error)
    }
}

/// Why a record was not written.
#[derive(Debug)]
pub(super) enum AppendError {
    Io(io::Error),
    /// The half is full.
    Full,
}

#[derive(Debug)]
pub(super) struct Log {
    medium: Medium,
    /// The length of a half.
    half: usize,
    /// Which half is in force.
    active: usize,
    generation: u64,
    /// The highest generation that any record in the file has, of either half.
    highest: u64,
    /// Where the next record goes, within the half.
    end: usize,
    next_number: u64,
}

struct Header {
    generation: u64,
    half: usize,
}

/// What stands where a header should.
enum Found {
    Header(Header),
    /// Nothing was written there yet.
    Nothing,
    /// What cannot be read any more, or was not written as a whole.
    Damage,
}

impl Log {
    /// Opens what is in the file, or begins anew where there is nothing. A file must have the length of both
    /// halves. The function is told each record that is found, in order. Returns how many stretches of the
    /// file were damaged, too.
    pub(super) fn open(
        medium: Medium,
        half: usize,
        each: &mut dyn FnMut(Place, &[u8]),
    ) -> Result<(Self, usize), OpenError> {
        let mut found = Vec::new();
        let mut other_version = None;
        // Each half is where the header of the other one says that it is, if that can be read.
        let mut length = half;
        for which in 0..2 {
            match read_header(&medium, which * length) {
                Ok(what) => {
                    if let (0, Found::Header(header)) = (which, &what) {
                        length = header.half;
                    }
                    found.push(what);
                }
                Err(OpenError::Version(version)) => other_version = Some(version),
                Err(error) => return Err(error),
            }
        }
        if let Some(version) = other_version {
            return Err(OpenError::Version(version));
        }
        if let Some(Found::Header(header)) = found.get(1) {
            length = header.half;
        }
        let mut log = Self {
            medium,
            half: length,
            active: 1,
            generation: 0,
            highest: 0,
            end: HEADER,
            next_number: 1,
        };
        let mut damaged = Vec::new();
        // One piece of memory for both, because libc would keep the second one.
        let mut bytes = vec![0; length];
        for (which, what) in found.into_iter().enumerate() {
            log.medium.read_into(which * length, &mut bytes)?;
            let highest = highest_generation(&bytes);
            let generation = match what {
                Found::Header(header) => header.generation,
                Found::Nothing => 0,
                Found::Damage => {
                    damaged.push(which);
                    highest
                }
            };
            log.highest = log.highest.max(highest).max(generation);
            if generation > log.generation {
                (log.active, log.generation) = (which, generation);
            }
        }
        if log.generation == 0 {
            log.rewrite(std::iter::empty())?;
            return Ok((log, damaged.len()));
        }
        for which in damaged {
            // A half is complete before its header is touched, so nothing is lost.
            let header = header(length, log.generation);
            let in_force = which == log.active;
            let bytes = if in_force {
                &header[..]
            } else {
                &[0; HEADER_USED]
            };
            log.medium.write(which * length, bytes)?;
        }
        log.medium.read_into(log.active * length, &mut bytes)?;
        let damaged = log.scan(&bytes, each);
        Ok((log, damaged))
    }

    /// How many bytes a half has for records.
    pub(super) fn capacity(&self) -> usize {
        self.half - HEADER
    }

    /// Whether what is written outlives the process.
    pub(super) fn is_durable(&self) -> bool {
        matches!(self.medium, Medium::File(_))
    }

    /// The file, if there is one.
    pub(super) fn file(&self) -> Option<&File> {
        match &self.medium {
            Medium::File(file) => Some(file),
            Medium::Memory(_) => None,
        }
    }

    /// How many times a half took over.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What the file holds, where it is only memory.
    pub(super) fn memory(&self) -> &[u8] {
        match &self.medium {
            Medium::File(_) => &[],
            Medium::Memory(memory) => memory,
        }
    }

    /// How many bytes are left.
    fn room(&self) -> usize {
        self.half - self.end
    }

    /// Writes records, all of them with one write.
    pub(super) fn append(&mut self, payloads: &[Vec<u8>]) -> Result<Vec<Place>, AppendError> {
        let mut bytes = Vec::new();
        let mut places = Vec::with_capacity(payloads.len());
        let mut number = self.next_number;
        for payload in payloads {
            places.push(Place {
                at: self.end + bytes.len(),
                length: payload.len(),
            });
            encode(&mut bytes, payload, self.generation, number);
            number += 1;
        }
        if bytes.len() > self.room() {
            return Err(AppendError::Full);
        }
        self.medium
            .write(self.active * self.half + self.end, &bytes)
            .map_err(AppendError::Io)?;
        self.end += bytes.len();
        self.next_number = number;
        Ok(places)
    }

    /// Reads a record again.
    pub(super) fn read(&self, place: Place) -> io::Result<Vec<u8>> {
        let at = self.active * self.half + place.at;
        let bytes = self.medium.read(at, size(place.length))?;
        match decode(&bytes, self.generation) {
            Some((_, payload)) => Ok(payload.to_vec()),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a record is damaged",
            )),
        }
    }

    /// Begins the other half with these records. If this fails, the old one stays in force.
    pub(super) fn rewrite(
        &mut self,
        payloads: impl IntoIterator<Item = Vec<u8>>,
    ) -> io::Result<Vec<Place>> {
        let (generation, active) = (self.highest + 1, 1 - self.active);
        // Even if this fails, something of it may be in the file.
        self.highest = generation;
        let base = active * self.half;
        let mut bytes = Vec::new();
        let mut places = Vec::new();
        let (mut end, mut number) = (HEADER, 1);
        for payload in payloads {
            let place = Place {
                at: end + bytes.len(),
                length: payload.len(),
            };
            if place.at + place.size() > self.half {
                return Err(io::Error::other("there is no room"));
            }
            encode(&mut bytes, &payload, generation, number);
            places.push(place);
            number += 1;
            if bytes.len() >= CHUNK {
                self.medium.write(base + end, &bytes)?;
                end += bytes.len();
                bytes.clear();
            }
        }
        self.medium.write(base + end, &bytes)?;
        end += bytes.len();
        self.medium.sync()?;
        self.medium.write(base, &header(self.half, generation))?;
        self.medium.sync()?;
        self.active = active;
        self.generation = generation;
        self.end = end;
        self.next_number = number;
        Ok(places)
    }

    /// Finds every good record of the half in force, which holds this.
    fn scan(&mut self, bytes: &[u8], each: &mut dyn FnMut(Place, &[u8])) -> usize {
        let mut damaged = 0;
        let mut at = HEADER;
        let mut in_damage = false;
        while at + FRAME <= bytes.len() {
            match decode(&bytes[at..], self.generation) {
                Some((number, payload)) if number >= self.next_number => {
                    // A number that is left out was never found, even if nothing looks damaged.
                    if in_damage || number > self.next_number {
                        damaged += 1;
                    }
                    in_damage = false;
                    let place = Place {
                        at,
                        length: payload.len(),
                    };
                    each(place, payload);
                    self.next_number = number + 1;
                    at += place.size();
                    self.end = at;
                }
                _ => {
                    in_damage = true;
                    at += ALIGNMENT;
                }
            }
        }
        damaged
    }
}

fn read_header(medium: &Medium, at: usize) -> Result<Found, OpenError> {
    let bytes = match medium.read(at, HEADER_USED) {
        Ok(bytes) => bytes,
        // The first header may be too damaged to tell where the second one is.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Found::Nothing),
        Err(error) => return Err(error.into()),
    };
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Found::Nothing);
    }
    if bytes[..8] != MAGIC || read_u32(&bytes, 32) != Some(crc32(&bytes[..32])) {
        return Ok(Found::Damage);
    }
    match read_u32(&bytes, 8) {
        Some(VERSION) => {}
        version => return Err(OpenError::Version(version.unwrap_or(0))),
    }
    let half = read_u64(&bytes, 16).and_then(|half| usize::try_from(half).ok());
    let header = half
        .zip(read_u64(&bytes, 24))
        .filter(|(half, generation)| *half > HEADER && *generation <= MAX_GENERATION)
        .map(|(half, generation)| Header { generation, half });
    Ok(header.map_or(Found::Damage, Found::Header))
}

fn header(half: usize, generation: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_USED);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&(half as u64).to_le_bytes());
    header.extend_from_slice(&generation.to_le_bytes());
    header.extend_from_slice(&crc32(&header).to_le_bytes());
    header
}

/// The highest generation of all good records of a half, or 0. Where its header cannot be read, it is that of the
/// half, too: those that are left of older ones have lower ones.
fn highest_generation(bytes: &[u8]) -> u64 {
    let mut highest = 0;
    let mut at = HEADER;
    while at + FRAME <= bytes.len() {
        let rest = &bytes[at..];
        // None is 0, and most of a new file is.
        let generation = read_u64(rest, 8).filter(|g| (1..=MAX_GENERATION).contains(g));
        match generation.and_then(|g| Some((g, decode(rest, g)?))) {
            Some((generation, (_, payload))) => {
                highest = highest.max(generation);
                at += size(payload.len());
            }
            None => at += ALIGNMENT,
        }
    }
    highest
}

fn encode(to: &mut Vec<u8>, payload: &[u8], generation: u64, number: u64) {
    let start = to.len();
    to.extend_from_slice(&[0; 4]);
    // Callers keep payloads far below the length of a half.
    to.extend_from_slice(
        &u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    to.extend_from_slice(&generation.to_le_bytes());
    to.extend_from_slice(&number.to_le_bytes());
    to.extend_from_slice(payload);
    let crc = crc32(&to[start + 4..]);
    to[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    to.resize(start + size(payload.len()), 0);
}

/// The record at the start of these bytes, if there is a good one of this generation: its number and payload.
fn decode(bytes: &[u8], generation: u64) -> Option<(u64, &[u8])> {
    if read_u64(bytes, 8)? != generation {
        return None;
    }
    let length = usize::try_from(read_u32(bytes, 4)?).ok()?;
    let record = bytes.get(..FRAME.checked_add(length)?)?;
    (crc32(&record[4..]) == read_u32(bytes, 0)?).then_some(())?;
    Some((read_u64(bytes, 16)?, &record[FRAME..]))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: usize = HEADER + 512;

    fn bytes(log: &Log) -> Vec<u8> {
        match &log.medium {
            Medium::Memory(memory) => memory.clone(),
            Medium::File(_) => unreachable!("the tests use memory"),
        }
    }

    fn open(bytes: Vec<u8>) -> (Log, Vec<String>, usize) {
        let mut found = Vec::new();
        let (log, damaged) = Log::open(Medium::Memory(bytes), HALF, &mut |place, payload| {
            found.push((place, payload.to_vec()));
        })
        .unwrap();
        let texts = found
            .into_iter()
            .map(|(place, payload)| {
                assert_eq!(log.read(place).unwrap(), payload);
                String::from_utf8(payload).unwrap()
            })
            .collect();
        (log, texts, damaged)
    }

    fn new() -> Log {
        let (log, texts, damaged) = open(vec![0; 2 * HALF]);
        assert_eq!((texts.len(), damaged), (0, 0));
        log
    }

    fn payloads(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    #[test]
    fn what_is_written_is_found_again() {
        let mut log = new();
        log.append(&payloads(&["one", ""])).unwrap();
        log.append(&payloads(&["three"])).unwrap();
        let (mut log, texts, damaged) = open(bytes(&log));
        assert_eq!(
            (texts, damaged),
            (vec!["one".into(), String::new(), "three".into()], 0)
        );
        log.append(&payloads(&["four"])).unwrap();
        assert_eq!(open(bytes(&log)).1.len(), 4);
    }

    #[test]
    fn a_full_half_takes_nothing_and_the_other_one_takes_over() {
        let mut log = new();
        let mut count = 0;
        while log.append(&payloads(&["0123456789"])).is_ok() {
            count += 1;
        }
        assert_eq!(count, 512 / size(10));
        log.rewrite(payloads(&["kept"])).unwrap();
        log.append(&payloads(&["new"])).unwrap();
        let (mut log, texts, damaged) = open(bytes(&log));
        assert_eq!((texts, damaged), (vec!["kept".to_owned(), "new".into()], 0));
        // What is left of the generation before is not found behind the end.
        log.rewrite(payloads(&["again"])).unwrap();
        assert_eq!(open(bytes(&log)).1, ["again"]);
        let too_much = log.rewrite(std::iter::repeat_n(vec![b'x'; 64], 10));
        assert!(too_much.is_err());
        assert_eq!(open(bytes(&log)).1, ["again"]);
    }

    #[test]
    fn a_write_that_is_cut_at_any_byte_loses_only_itself() {
        let mut log = new();
        log.append(&payloads(&["first"])).unwrap();
        let before = bytes(&log);
        log.append(&payloads(&["second", "third"])).unwrap();
        let after = bytes(&log);
        let changed: Vec<_> = (0..after.len())
            .filter(|at| before[*at] != after[*at])
            .collect();
        let (start, end) = (changed[0], changed[changed.len() - 1] + 1);
        for cut in start..end {
            let mut torn = before.clone();
            torn[start..cut].copy_from_slice(&after[start..cut]);
            let (mut log, texts, _) = open(torn);
            assert!(
                texts == ["first"] || texts == ["first", "second"],
                "{texts:?} after {cut}"
            );
            log.append(&payloads(&["next"])).unwrap();
            let (_, now, _) = open(bytes(&log));
            assert_eq!(now[..texts.len()], texts);
            assert_eq!(
                now.last().map(String::as_str),
                Some("next"),
                "{now:?} after {cut}"
            );
        }
    }

    #[test]
    fn a_change_of_halves_that_is_cut_at_any_byte_leaves_the_old_or_the_new() {
        let mut log = new();
        log.append(&payloads(&["old", "older"])).unwrap();
        let before = bytes(&log);
        log.rewrite(payloads(&["new"])).unwrap();
        let after = bytes(&log);
        // The records come first, then the header.
        let other = |at: usize| at >= HALF;
        let changed: Vec<_> = (0..after.len())
            .filter(|at| before[*at] != after[*at])
            .collect();
        let records = changed
            .iter()
            .filter(|at| other(**at) && **at >= HALF + HEADER);
        let header = changed
            .iter()
            .filter(|at| other(**at) && **at < HALF + HEADER);
        let before_header = records.clone().count();
        let order: Vec<usize> = records.chain(header).copied().collect();
        assert_eq!(order.len(), changed.len());
        for cut in 0..=order.len() {
            let mut torn = before.clone();
            for at in &order[..cut] {
                torn[*at] = after[*at];
            }
            let (_, texts, damaged) = open(torn);
            let new = texts == ["new"];
            assert!(new || texts == ["old", "older"], "{texts:?} after {cut}");
            assert_eq!(damaged, 0);
            // Once its header is begun, the new half is whole.
            assert_eq!(new, cut > before_header, "after {cut}");
        }
    }

    #[test]
    fn any_damaged_byte_costs_no_more_than_its_record() {
        let mut log = new();
        log.rewrite(payloads(&["one", "two", "three"])).unwrap();
        let good = bytes(&log);
        let base = log.active * HALF;
        for at in HEADER..log.end {
            for flip in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[base + at] ^= flip;
                let (mut log, texts, _) = open(bad);
                assert!(texts.len() >= 2, "{texts:?} with byte {at} ^ {flip}");
                for text in &texts {
                    assert!(["one", "two", "three"].contains(&text.as_str()));
                }
                log.append(&payloads(&["next"])).unwrap();
                assert_eq!(open(bytes(&log)).1.last().map(String::as_str), Some("next"));
            }
        }
        // Damage in the middle is counted.
        let mut bad = good.clone();
        bad[base + HEADER + size(3) + 1] ^= 1;
        assert_eq!(open(bad).2, 1);
    }

    #[test]
    fn a_damaged_header_costs_nothing_and_no_generation_is_used_twice() {
        for at in 0..HEADER_USED {
            let mut log = new();
            log.append(&payloads(&["old"])).unwrap();
            log.rewrite(payloads(&["one", "two", "three"])).unwrap();
            let before = (log.active, log.generation);
            let mut bad = bytes(&log);
            bad[log.active * HALF + at] ^= 0xff;
            let (mut log, texts, damaged) = open(bad);
            assert_eq!(texts, ["one", "two", "three"], "byte {at}");
            assert_eq!(
                (damaged, log.active, log.generation),
                (0, before.0, before.1)
            );
            // It was mended.
            assert_eq!(open(bytes(&log)).1, texts);
            // That of the half that is not in force does not matter.
            let mut bad = bytes(&log);
            bad[(1 - log.active) * HALF + at] ^= 0xff;
            let (_, same, _) = open(bad);
            assert_eq!(same, texts, "byte {at}");
            // Not even the records of a half whose header is gone come back with a later one.
            log.rewrite(payloads(&["four", "five", "six"])).unwrap();
            let mut bad = bytes(&log);
            let base = log.active * HALF;
            bad[base..base + HEADER_USED].fill(0);
            let (mut log, texts, _) = open(bad);
            assert_eq!(texts, ["one", "two", "three"]);
            log.rewrite(payloads(&["seven"])).unwrap();
            assert_eq!(open(bytes(&log)).1, ["seven"]);
        }
    }

    #[test]
    fn a_half_that_was_only_begun_does_not_come_back_with_the_next_one() {
        let mut log = new();
        log.append(&payloads(&["kept"])).unwrap();
        let before = bytes(&log);
        log.rewrite(payloads(&["one", "two", "three"])).unwrap();
        // The crash comes before the header.
        let mut torn = bytes(&log);
        let header = log.active * HALF..log.active * HALF + HEADER_USED;
        torn[header.clone()].copy_from_slice(&before[header]);
        let (mut log, texts, damaged) = open(torn);
        assert_eq!((texts, damaged), (vec!["kept".to_owned()], 0));
        log.rewrite(payloads(&["new"])).unwrap();
        assert_eq!(open(bytes(&log)).1, ["new"]);
    }

    #[test]
    fn both_headers_may_be_damaged() {
        let mut log = new();
        log.append(&payloads(&["old"])).unwrap();
        log.rewrite(payloads(&["new"])).unwrap();
        let mut bad = bytes(&log);
        bad[9] ^= 1;
        bad[HALF + 9] ^= 1;
        let (mut log, texts, damaged) = open(bad);
        assert_eq!((texts, damaged), (vec!["new".to_owned()], 0));
        log.append(&payloads(&["newer"])).unwrap();
        assert_eq!(open(bytes(&log)).1, ["new", "newer"]);
    }

    #[test]
    fn a_record_that_is_read_again_is_checked_again() {
        let mut log = new();
        let places = log.append(&payloads(&["text"])).unwrap();
        assert_eq!(log.read(places[0]).unwrap(), b"text");
        let at = log.active * HALF + places[0].at + FRAME;
        log.medium.write(at, b"T").unwrap();
        assert!(log.read(places[0]).is_err());
    }

    #[test]
    fn another_version_is_not_touched() {
        let mut bytes = bytes(&new());
        bytes[8] = 2;
        let crc = crc32(&bytes[..32]).to_le_bytes();
        bytes[32..36].copy_from_slice(&crc);
        assert!(matches!(
            Log::open(Medium::Memory(bytes), HALF, &mut |_, _| {}),
            Err(OpenError::Version(2))
        ));
    }
}
