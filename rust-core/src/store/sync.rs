//! Gets what was written to the disk, on a thread of its own: a disk that hangs must not hold up a recovery.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crossbeam_channel::{bounded, Receiver, Sender, TrySendError};
use tracing::error;

/// Asks for what was written to be brought to the disk.
#[derive(Debug)]
pub(crate) struct Syncer {
    wanted: Arc<AtomicU64>,
    wake: Sender<()>,
    last: u64,
    begun: u64,
}

/// Brings it there. Belongs to a thread.
#[derive(Debug)]
pub(crate) struct Worker {
    file: File,
    wanted: Arc<AtomicU64>,
    woken: Receiver<()>,
    done: Sender<u64>,
}

impl Syncer {
    /// The two sides, and where the worker says how far it is.
    pub(crate) fn new(file: File) -> (Self, Worker, Receiver<u64>) {
        let wanted = Arc::new(AtomicU64::new(0));
        let (wake, woken) = bounded(1);
        let (done, progress) = bounded(16);
        let worker = Worker {
            file,
            wanted: Arc::clone(&wanted),
            woken,
            done,
        };
        let syncer = Self {
            wanted,
            wake,
            last: 0,
            begun: 0,
        };
        (syncer, worker, progress)
    }

    /// Everything that was written so far is to be on the disk. When the worker names this number or a higher
    /// one, it is. Begins with [`Self::begin`], so that one trip to the disk does for all that is written
    /// together.
    pub(crate) fn request(&mut self) -> u64 {
        self.last += 1;
        self.wanted.store(self.last, Ordering::Release);
        self.last
    }

    /// Brings what was asked for to the disk.
    pub(crate) fn begin(&mut self) {
        if std::mem::replace(&mut self.begun, self.last) == self.last {
            return;
        }
        match self.wake.try_send(()) {
            // One that was not looked at yet will do.
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => error!("nobody brings the journal to the disk"),
        }
    }
}

impl Worker {
    /// Works until the other side is gone.
    pub(crate) fn run(self) {
        let mut failed = false;
        while self.woken.recv().is_ok() {
            let number = self.wanted.load(Ordering::Acquire);
            if let Err(error) = self.file.sync_data() {
                // There is nothing to be done about it that would be better than to go on.
                if !failed {
                    error!("the journal does not reach the disk: {error}");
                }
                failed = true;
            }
            if self.done.send(number).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_asked_for_together_is_one_trip_to_the_disk() {
        let (mut syncer, worker, progress) = Syncer::new(tempfile::tempfile().unwrap());
        let thread = std::thread::spawn(|| worker.run());
        assert_eq!((syncer.request(), syncer.request()), (1, 2));
        assert!(progress.try_recv().is_err());
        syncer.begin();
        syncer.begin();
        assert_eq!(progress.recv_timeout(Duration::from_secs(20)), Ok(2));
        assert_eq!(syncer.request(), 3);
        syncer.begin();
        assert_eq!(progress.recv_timeout(Duration::from_secs(20)), Ok(3));
        drop(syncer);
        thread.join().unwrap();
        assert!(progress.try_recv().is_err());
    }
}
