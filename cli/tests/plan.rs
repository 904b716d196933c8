//! `weft plan`, the real binary against a fake controller: what it prints, and exits with.
mod fake;

use fake::{Controller, Script};
use serde_json::json;
use weft_proto::v1::{self, object::Kind as Of};

const SET: &str = "kind: CidrSet\nname: partners\ncidrs: [198.51.100.0/24]\n";

fn set(cidrs: &[&str]) -> v1::Object {
    let metadata = v1::Metadata { name: "partners".to_owned(), ..v1::Metadata::default() };
    let cidrs = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
    v1::Object { kind: Some(Of::CidrSet(v1::CidrSet { metadata: Some(metadata), cidrs })) }
}

fn planned(change: v1::Change, verdicts: v1::VerdictDiff) -> v1::PlanResponse {
    let object = v1::PlannedObject {
        kind: v1::Kind::CidrSet.into(),
        name: "partners".to_owned(),
        change: change.into(),
        before: Some(set(&["198.51.100.0/25"])),
        after: Some(set(&["198.51.100.0/24"])),
    };
    v1::PlanResponse {
        revision: 41,
        objects: vec![object],
        verdicts: Some(verdicts),
        ..v1::PlanResponse::default()
    }
}

fn newly_allowed() -> v1::VerdictDiff {
    let step = |policy: &str, rule: &str, text: &str| v1::VerdictStep {
        tier: v1::Tier::Application.into(),
        policy: policy.to_owned(),
        rule: rule.to_owned(),
        text: text.to_owned(),
        decided: true,
    };
    let pair = v1::VerdictPair {
        subject: "endpoints app=api".to_owned(),
        direction: v1::Direction::Ingress.into(),
        peer: "198.51.100.0/24".to_owned(),
        ports: "tcp/8080".to_owned(),
        before: v1::Verdict::Deny.into(),
        after: v1::Verdict::Allow.into(),
        decided_before: Some(step("api", "", "no rule matches, and its default is deny")),
        decided_after: Some(step("api", "partners", "allowed, and nothing denies")),
    };
    v1::VerdictDiff {
        newly_allowed: 12,
        newly_denied: 3,
        pairs: vec![pair],
        subjects: 2,
        compared: 480,
        cut_off: vec!["1 of 15 pairs that differ are listed".to_owned()],
    }
}

async fn plan(answer: v1::PlanResponse, flags: &[&str]) -> fake::Ran {
    let script = Script { plan: Some(Ok(answer)), ..Script::default() };
    let controller = Controller::start(script).await;
    let ran = controller.weft_with_input(&[&["plan", "-f", "-"], flags].concat(), SET).await;
    assert_eq!(controller.asked(|asked| asked.plan[0].objects.len()), 1);
    assert!(controller.asked(|asked| asked.apply.is_empty()));
    ran
}

#[tokio::test]
async fn a_plan_shows_objects_verdicts_and_rules_and_exits_2() {
    let ran = plan(planned(v1::Change::Configured, newly_allowed()), &[]).await;
    ran.assert_code(2);
    let expected = "\
KIND     NAME      CHANGE
CidrSet  partners  configured

CidrSet partners
  …
  name: partners
  cidrs:
-   - 198.51.100.0/25
+   - 198.51.100.0/24

12 pairs newly allowed, 3 newly denied (480 compared, 2 changed subjects)
VERDICT  SUBJECT            PEER                  PORTS     DECIDED BY      BEFORE
+ allow  endpoints app=api  from 198.51.100.0/24  tcp/8080  api / partners  api: default deny
not all is here: 1 of 15 pairs that differ are listed

plan at revision 41: nothing was changed
";
    assert_eq!(ran.stdout, expected);
    assert_eq!(ran.stderr, "");
}

#[tokio::test]
async fn a_plan_without_differences_exits_0() {
    let ran = plan(planned(v1::Change::Unchanged, v1::VerdictDiff::default()), &[]).await;
    ran.assert_code(0);
    assert!(ran.stdout.contains("0 pairs newly allowed, 0 newly denied"), "{}", ran.stdout);
}

#[tokio::test]
async fn a_plan_for_machines_has_all_of_it() {
    let ran = plan(planned(v1::Change::Configured, newly_allowed()), &["-o", "json"]).await;
    let value = ran.assert_code(2).json();
    assert_eq!(value["verdicts"]["newlyAllowed"], 12);
    assert_eq!(value["verdicts"]["pairs"][0]["decidedAfter"]["rule"], "partners");
    assert_eq!(value["objects"][0]["after"]["cidrs"], json!(["198.51.100.0/24"]));
    assert_eq!(value["verdicts"]["pairs"][0]["after"], "allow");
}
