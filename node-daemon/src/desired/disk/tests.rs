use prost::Message;

use super::*;

fn some_state() -> Desired {
    let mut desired = Desired { store_id: "store-1".to_owned(), ..Desired::default() };
    let fleet = v1::NodeFleet { pools: vec!["10.200.0.0/16".to_owned()], ..v1::NodeFleet::default() };
    let upserts = vec![
        v1::Upsert {
            r#type: v1::ResourceType::Fleet.into(),
            name: "fleet".to_owned(),
            bytes: fleet.encode_to_vec().into(),
            ..v1::Upsert::default()
        },
        v1::Upsert {
            r#type: v1::ResourceType::IdentitySetMember.into(),
            name: "set/300".to_owned(),
            ..v1::Upsert::default()
        },
    ];
    desired.apply(Batch { revision: 7, identities_through: 300, upserts, in_sync: true, ..Batch::default() });
    desired
}

fn disk() -> (tempfile::TempDir, Disk) {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path().join("state")).unwrap();
    (directory, disk)
}

#[test]
fn a_state_survives_the_disk() {
    let (_directory, disk) = disk();
    disk.store_desired(&some_state()).unwrap();
    assert_eq!(disk.load_desired().unwrap(), some_state());
}

#[test]
fn no_file_is_a_fresh_state() {
    let (_directory, disk) = disk();
    assert_eq!(disk.load_desired().unwrap(), Desired::default());
}

#[test]
fn a_file_cut_at_any_byte_is_refused_and_the_error_names_file_place_and_way_out() {
    let (_directory, disk) = disk();
    disk.store_desired(&some_state()).unwrap();
    let path = disk.path(Content::Desired);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let text = disk.load_desired().expect_err(&format!("cut to {length} bytes")).to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains(&format!("at byte {length}")), "{text}");
        assert!(text.contains("--forget-desired"), "{text}");
    }
}

#[test]
fn a_file_with_any_byte_changed_is_refused() {
    let (_directory, disk) = disk();
    disk.store_desired(&some_state()).unwrap();
    let path = disk.path(Content::Desired);
    let whole = fs::read(&path).unwrap();
    for place in 0..whole.len() {
        let mut changed = whole.clone();
        changed[place] ^= 0x40;
        fs::write(&path, &changed).unwrap();
        assert!(disk.load_desired().is_err(), "byte {place} changed, and nobody noticed");
    }
}

#[test]
fn a_file_with_something_behind_it_is_refused() {
    let (_directory, disk) = disk();
    disk.store_desired(&some_state()).unwrap();
    let path = disk.path(Content::Desired);
    let mut longer = fs::read(&path).unwrap();
    longer.push(0);
    fs::write(&path, longer).unwrap();
    assert!(disk.load_desired().is_err());
}

#[test]
fn a_file_of_the_other_kind_is_refused() {
    let (_directory, disk) = disk();
    disk.store(Content::Attachments, b"{}").unwrap();
    fs::rename(disk.path(Content::Attachments), disk.path(Content::Desired)).unwrap();
    assert!(disk.load_desired().is_err());
}

#[test]
fn a_write_that_never_finished_leaves_the_former_state() {
    let (_directory, disk) = disk();
    disk.store_desired(&some_state()).unwrap();
    fs::write(disk.path(Content::Desired).with_extension("new"), b"half").unwrap();
    assert_eq!(disk.load_desired().unwrap(), some_state());
}

#[test]
fn a_file_moved_aside_is_kept_and_the_next_start_is_fresh() {
    let (_directory, disk) = disk();
    fs::write(disk.path(Content::Desired), b"broken").unwrap();

    let aside = disk.move_aside(Content::Desired, "forgotten").unwrap().unwrap();

    assert_eq!(fs::read(aside).unwrap(), b"broken");
    assert_eq!(disk.load_desired().unwrap(), Desired::default());
    assert_eq!(disk.move_aside(Content::Desired, "forgotten").unwrap(), None);
}
