use prost::Message as _;
use weft_proto::v1;

use super::*;
use crate::desired::disk::Content;

/// A daemon's way to keep its state.
struct Keeper {
    _directory: tempfile::TempDir,
    disk: Disk,
    desired: Desired,
    journal: Option<Journal>,
}

impl Keeper {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::open(directory.path().join("state")).unwrap();
        let desired = Desired { store_id: "store-1".to_owned(), ..Desired::default() };
        let mut keeper = Self { _directory: directory, disk, desired, journal: None };
        let fleet = v1::NodeFleet { pools: vec!["10.200.0.0/16".to_owned()], ..v1::NodeFleet::default() };
        let fleet = v1::Upsert {
            r#type: v1::ResourceType::Fleet.into(),
            name: "fleet".to_owned(),
            bytes: fleet.encode_to_vec().into(),
            ..v1::Upsert::default()
        };
        keeper.take(Batch { upserts: vec![fleet, member("peers/300")], in_sync: true, ..Batch::default() });
        keeper
    }

    /// `true`: a record was written, and not the file.
    fn take(&mut self, batch: Batch) -> bool {
        let revision = self.desired.revision + 1;
        let change = Change::of(&batch);
        self.desired.apply(Batch { revision, identities_through: 300, ..batch });
        if let (Some(change), Some(journal)) = (change, &mut self.journal)
            && journal.append(&self.desired, &change).unwrap()
        {
            return true;
        }
        self.journal = Some(self.disk.store_desired(&self.desired).unwrap());
        false
    }

    fn join(&mut self, name: &str) -> bool {
        self.take(Batch { upserts: vec![member(name)], ..Batch::default() })
    }

    fn leave(&mut self, name: &str) -> bool {
        let kind = v1::ResourceType::IdentitySetMember.into();
        self.take(Batch {
            removes: vec![v1::Remove { r#type: kind, name: name.to_owned() }],
            ..Batch::default()
        })
    }

    fn load(&self) -> Result<Desired, DiskError> {
        self.disk.load_desired()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.disk.journal_path()).unwrap()
    }

    fn set_bytes(&self, bytes: &[u8]) {
        fs::write(self.disk.journal_path(), bytes).unwrap();
    }
}

fn member(name: &str) -> v1::Upsert {
    let kind = v1::ResourceType::IdentitySetMember.into();
    v1::Upsert { r#type: kind, name: name.to_owned(), ..v1::Upsert::default() }
}

/// Three records, the lengths of the journal after each (and before the first), and the state at each.
fn three_records() -> (Keeper, Vec<usize>, Vec<Desired>) {
    let mut keeper = Keeper::new();
    let (mut ends, mut states) = (vec![HEADER_BYTES], vec![keeper.desired.clone()]);
    let mut note = |keeper: &Keeper| {
        ends.push(keeper.bytes().len());
        states.push(keeper.desired.clone());
    };
    assert!(keeper.join("peers/301"));
    note(&keeper);
    assert!(keeper.leave("peers/300"));
    note(&keeper);
    assert!(keeper.join("others/300"));
    note(&keeper);
    (keeper, ends, states)
}

#[test]
fn what_changed_since_the_file_was_written_survives() {
    let (keeper, _, states) = three_records();
    assert_eq!(keeper.load().unwrap(), keeper.desired);
    assert_eq!(states[3].sets().len(), 2);
    // The file was not touched.
    fs::remove_file(keeper.disk.journal_path()).unwrap();
    assert_eq!(keeper.load().unwrap(), states[0]);
}

#[test]
fn a_journal_cut_at_any_byte_is_the_state_after_its_last_whole_record() {
    let (keeper, ends, states) = three_records();
    let whole = keeper.bytes();
    assert_eq!(ends[3], whole.len());
    for length in 0..=whole.len() {
        keeper.set_bytes(&whole[..length]);
        let records = ends.iter().filter(|end| **end <= length).count().saturating_sub(1);
        assert_eq!(keeper.load().unwrap(), states[records], "cut to {length} bytes");
    }
}

#[test]
fn nor_does_room_count_that_nothing_was_written_to() {
    let (keeper, ends, states) = three_records();
    let whole = keeper.bytes();
    for (records, end) in ends.iter().enumerate() {
        let mut longer = whole[..*end].to_vec();
        longer.resize(end + 4096, 0);
        keeper.set_bytes(&longer);
        assert_eq!(keeper.load().unwrap(), states[records]);
    }
    // Nor the last record's own: its length came to the disk, and a part of it.
    let start = ends[2];
    for kept in start + LENGTH_BYTES..whole.len() - CHECKSUM_BYTES {
        let mut torn = whole[..kept].to_vec();
        torn.resize(whole.len(), 0);
        keeper.set_bytes(&torn);
        assert_eq!(keeper.load().unwrap(), states[2], "written as far as byte {kept}");
    }
}

#[test]
fn a_journal_with_any_byte_changed_is_refused_with_file_place_and_way_out() {
    let (keeper, _, _) = three_records();
    let whole = keeper.bytes();
    for place in 0..whole.len() {
        for bit in [0x01, 0x40, 0x80] {
            let mut changed = whole.clone();
            changed[place] ^= bit;
            keeper.set_bytes(&changed);
            let found = keeper.load().expect_err(&format!("byte {place} changed, and nobody noticed"));
            let DiskError::Broken { offset, .. } = &found else { panic!("{found}") };
            assert!(*offset <= place as u64, "byte {place}: {found}");
            let text = found.to_string();
            assert!(text.contains(&keeper.disk.journal_path().display().to_string()), "{text}");
            assert!(text.contains("--forget-desired"), "{text}");
        }
    }
}

#[test]
fn a_journal_of_a_former_file_is_passed_over() {
    let (mut keeper, _, _) = three_records();
    let former = keeper.bytes();
    keeper.journal = Some(keeper.disk.store_desired(&keeper.desired).unwrap());
    assert!(!keeper.disk.journal_path().exists());
    // As after a crash between the two.
    keeper.set_bytes(&former);
    assert_eq!(keeper.load().unwrap(), keeper.desired);
    // It is written over, not behind it.
    assert!(keeper.leave("others/300"));
    assert_eq!(keeper.load().unwrap(), keeper.desired);
}

#[test]
fn a_journal_that_has_outgrown_its_file_ends_in_the_file() {
    let mut keeper = Keeper::new();
    let mut records = 0_u64;
    while keeper.join(&format!("peers/{}", 1000 + records)) {
        records += 1;
        assert!(keeper.bytes().len() as u64 <= JOURNAL_BYTES_MIN + 1024);
    }
    assert!(records > 100, "{records} records");
    assert!(!keeper.disk.journal_path().exists());
    assert_eq!(keeper.load().unwrap(), keeper.desired);
    assert!(keeper.join("peers/1"), "and another one begins");
    assert_eq!(keeper.load().unwrap(), keeper.desired);
}

#[test]
fn a_batch_that_lists_everything_writes_the_file() {
    let (mut keeper, _, _) = three_records();
    let listed = BTreeSet::from([Key { kind: v1::ResourceType::Fleet, name: "fleet".to_owned() }]);
    assert!(!keeper.take(Batch { listed: Some(listed), ..Batch::default() }));
    assert_eq!(keeper.load().unwrap(), keeper.desired);
    assert!(keeper.desired.sets().is_empty());
}

#[test]
fn what_is_rejected_is_kept_in_its_last_good_form() {
    let (mut keeper, _, _) = three_records();
    let later = v1::Upsert { requires: vec!["what-no-daemon-knows".to_owned()], ..member("peers/301") };
    let unknown = v1::Upsert { r#type: 4711, ..member("x") };
    assert!(keeper.take(Batch { upserts: vec![later, unknown], ..Batch::default() }));
    assert_eq!(keeper.desired.rejected().count(), 2);
    let loaded = keeper.load().unwrap();
    assert_eq!((loaded.sets(), loaded.realised), (keeper.desired.sets(), keeper.desired.realised));
    assert!(loaded.realised < loaded.revision);
}

#[test]
fn a_file_moved_aside_takes_its_journal_along() {
    let (keeper, _, _) = three_records();
    keeper.disk.move_aside(Content::Desired, "forgotten").unwrap().unwrap();
    assert!(!keeper.disk.journal_path().exists());
    assert!(keeper.disk.journal_path().with_extension("forgotten").exists());
    assert_eq!(keeper.load().unwrap(), Desired::default());
}

#[test]
fn nothing_is_written_behind_what_somebody_took_away() {
    let (mut keeper, _, _) = three_records();
    for path in [keeper.disk.journal_path(), keeper.disk.path(Content::Desired)] {
        assert!(keeper.join("peers/400"));
        fs::rename(&path, path.with_extension("taken")).unwrap();
        assert!(!keeper.leave("peers/400"), "{}", path.display());
        assert_eq!(keeper.load().unwrap(), keeper.desired);
    }
}
