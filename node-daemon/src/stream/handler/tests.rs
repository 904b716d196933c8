use super::*;

fn welcome(store_id: &str, revision: u64) -> ControllerMessage {
    let welcome = v1::Welcome { store_id: store_id.to_owned(), revision, ..v1::Welcome::default() };
    ControllerMessage { message: Some(Message::Welcome(welcome)) }
}

fn holding(store_id: &str, revision: u64) -> Session {
    Session::new(&v1::Have { store_id: store_id.to_owned(), revision, ..v1::Have::default() })
}

fn member(name: &str) -> v1::Upsert {
    v1::Upsert {
        r#type: ResourceType::IdentitySetMember.into(),
        name: name.to_owned(),
        ..v1::Upsert::default()
    }
}

fn delta(delta: v1::Delta) -> ControllerMessage {
    ControllerMessage { message: Some(Message::Delta(delta)) }
}

fn welcomed(store_id: &str, revision: u64) -> Session {
    let mut session = holding(store_id, revision);
    session.handle(welcome("s1", revision)).unwrap();
    session
}

fn batch(event: Option<Event>) -> Batch {
    match event {
        Some(Event::Batch(batch)) => batch,
        other => panic!("expected a batch, got {other:?}"),
    }
}

#[test]
fn a_first_store_is_taken_and_a_known_one_welcomed() {
    assert!(holding("", 0).handle(welcome("s1", 4)).is_ok());
    assert!(holding("s1", 4).handle(welcome("s1", 4)).is_ok());
}

#[test]
fn another_store_changes_nothing() {
    let error = holding("s1", 4).handle(welcome("s2", 9)).unwrap_err();
    assert!(error.is_guard());
    assert!(error.to_string().contains("s2"), "{error}");
}

#[test]
fn a_store_that_is_behind_the_node_changes_nothing() {
    let error = holding("s1", 4).handle(welcome("s1", 3)).unwrap_err();
    assert!(error.is_guard());
}

#[test]
fn nothing_is_taken_before_welcome() {
    let mut session = holding("", 0);
    let error = session.handle(delta(v1::Delta::default())).unwrap_err();
    assert_eq!(error, SessionError::NotWelcomed("a delta"));
}

#[test]
fn messages_with_more_are_staged_until_the_last() {
    let mut session = welcomed("s1", 0);
    let first = v1::Delta {
        nonce: 1,
        revision: 5,
        more: true,
        upserts: vec![member("a/300")],
        ..v1::Delta::default()
    };
    let last = v1::Delta {
        nonce: 1,
        revision: 5,
        identities_through: 301,
        upserts: vec![member("a/301")],
        ..v1::Delta::default()
    };

    assert_eq!(session.handle(delta(first)).unwrap(), None);
    let batch = batch(session.handle(delta(last)).unwrap());

    let names: Vec<_> = batch.upserts.iter().map(|upsert| upsert.name.as_str()).collect();
    assert_eq!(names, ["a/300", "a/301"]);
    assert_eq!((batch.nonce, batch.revision, batch.identities_through), (1, 5, 301));
    assert_eq!(batch.listed, None);
}

#[test]
fn a_full_sync_lists_the_names_of_all_its_deltas() {
    let mut session = welcomed("s1", 0);
    let first =
        v1::Delta { revision: 5, upserts: vec![member("a/300"), member("a/301")], ..v1::Delta::default() };
    let gone = v1::Remove { r#type: ResourceType::IdentitySetMember.into(), name: "a/300".to_owned() };
    let last = v1::Delta {
        revision: 6,
        upserts: vec![member("a/302")],
        removes: vec![gone],
        in_sync: true,
        full: true,
        ..v1::Delta::default()
    };

    batch(session.handle(delta(first)).unwrap());
    let listed = batch(session.handle(delta(last)).unwrap()).listed.unwrap();

    let names: Vec<_> = listed.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["a/301", "a/302"]);
}

#[test]
fn in_sync_without_full_lists_nothing() {
    let mut session = welcomed("s1", 0);
    let synced = v1::Delta { revision: 5, in_sync: true, ..v1::Delta::default() };
    let batch = batch(session.handle(delta(synced)).unwrap());
    assert!(batch.in_sync);
    assert_eq!(batch.listed, None);
}

#[test]
fn a_delta_that_goes_back_ends_the_stream() {
    let mut session = welcomed("s1", 0);
    session.handle(delta(v1::Delta { revision: 5, ..v1::Delta::default() })).unwrap();
    let error = session.handle(delta(v1::Delta { revision: 4, ..v1::Delta::default() })).unwrap_err();
    assert_eq!(error, SessionError::Backwards { held: 5, offered: 4 });
}

#[test]
fn a_message_of_a_later_version_ends_the_stream() {
    assert_eq!(holding("", 0).handle(ControllerMessage { message: None }).unwrap_err(), SessionError::Empty);
}

#[test]
fn an_adopted_node_takes_the_stores_word_and_only_if_it_holds_what_was_adopted() {
    let adoption = |former_store_id: &str, former_revision, digest: &[u8]| v1::Adoption {
        former_store_id: former_store_id.to_owned(),
        former_revision,
        former_digest: digest.to_vec(),
    };
    let digests = vec![v1::TypeDigest { r#type: 1, digest: vec![7; 16], resources: 1 }];
    let have = v1::Have { store_id: "s1".to_owned(), revision: 40, digests, ..v1::Have::default() };
    let welcomed = |store_id: &str, adoption: v1::Adoption| {
        let welcome = v1::Welcome {
            store_id: store_id.to_owned(),
            revision: 3,
            adoption: Some(adoption),
            ..v1::Welcome::default()
        };
        let mut session = Session::new(&have);
        let event = session.handle(ControllerMessage { message: Some(Message::Welcome(welcome)) });
        event.map(|event| (session, event))
    };

    for store_id in ["s1", "s2"] {
        let (mut session, event) = welcomed(store_id, adoption("s1", 40, &[7; 16])).unwrap();
        assert!(matches!(event, Some(Event::Welcomed { adopts: true, .. })), "{event:?}");
        let first = v1::Delta { revision: 3, in_sync: true, full: true, ..v1::Delta::default() };
        assert_eq!(batch(session.handle(delta(first)).unwrap()).revision, 3);

        let others =
            [adoption("s2", 40, &[7; 16]), adoption("s1", 41, &[7; 16]), adoption("s1", 40, &[8; 16])];
        for other in others {
            let error = welcomed(store_id, other.clone()).unwrap_err();
            assert!(error.is_guard(), "{other:?}: {error}");
        }
    }
}
