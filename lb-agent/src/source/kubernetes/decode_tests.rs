// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines and pages as servers write them, in every order of keys, and as they should not.

use proptest::prelude::*;

use super::*;

const SLICE: &str = r#"{"kind":"EndpointSlice","metadata":{"name":"web-x","namespace":"shop","resourceVersion":"41","uid":"u","labels":{"kubernetes.io/service-name":"web"},"annotations":null,"managedFields":[{"fieldsV1":{"f:endpoints":{}}}],"ownerReferences":[{"name":"web"}]},"addressType":"IPv4","endpoints":[{"addresses":["10.1.0.1"],"conditions":{"ready":true},"nodeName":"n"}],"ports":[{"port":80,"protocol":"TCP"}],"unknown":[1,{"a":2}]}"#;

fn applied(line: &str) -> (Item, Option<String>) {
    let Event::Applied(item, version) = event::<EndpointSlice>(line.as_bytes()).unwrap() else {
        panic!("{line}");
    };
    (item, version)
}

#[test]
fn the_order_of_keys_and_white_space_do_not_matter() {
    let lines = [
        format!(r#"{{"type":"ADDED","object":{SLICE}}}"#),
        format!(r#"{{"type":"MODIFIED","object":{SLICE}}}"#),
        format!(r#"{{"object":{SLICE},"type":"ADDED"}}"#),
        format!(" {{ \"type\" : \"ADDED\", \"object\" : {SLICE} }} \r"),
    ];
    for line in lines {
        let (item, version) = applied(&line);
        assert_eq!(version.as_deref(), Some("41"), "{line}");
        let Ok(Some(Object::EndpointSlice(slice))) = item.object else {
            panic!("{line}: {:?}", item.object);
        };
        assert_eq!(slice.service, Some(ServiceKey::new("shop", "web")));
        assert_eq!(slice.endpoints.len(), 1);
    }
}

#[test]
fn a_slice_of_names_means_nothing_and_is_not_wrong() {
    let line = SLICE.replace("IPv4", "FQDN");
    let (item, _) = applied(&format!(r#"{{"type":"ADDED","object":{line}}}"#));
    let Ok(Some(Object::EndpointSlice(slice))) = item.object else {
        panic!("{:?}", item.object);
    };
    assert!(slice.names && slice.endpoints.is_empty());
    assert_eq!(slice.rejected.len(), 1);
}

#[test]
fn what_is_wrong_with_an_object_is_named_by_its_field() {
    let form = SLICE.replace(r#""port":80"#, r#""port":"http""#);
    let value = SLICE.replace(r#""addressType":"IPv4""#, r#""addressType":"IPv7""#);
    let wanted = [
        (
            form,
            "ports[0].port: invalid type: string \"http\", expected i32",
        ),
        (value, "addressType: unknown address type \"IPv7\""),
    ];
    for (object, wanted) in wanted {
        let (item, version) = applied(&format!(r#"{{"type":"ADDED","object":{object}}}"#));
        let message = item.object.unwrap_err().message;
        assert!(message.starts_with(wanted), "{message}");
        assert_eq!(item.reference.to_string(), "EndpointSlice shop/web-x");
        assert_eq!(
            version.as_deref(),
            Some("41"),
            "the stream goes on from there"
        );
    }
}

#[test]
fn objects_that_are_wrong_leave_their_neighbours_on_a_page_alone() {
    let wrong = SLICE.replace(r#""endpoints":["#, r#""endpoints":[7,"#);
    let nameless = SLICE.replace("web-x", "");
    let text = format!(
        r#"{{"items":[{SLICE},{wrong},{nameless},{{}}],"metadata":{{"resourceVersion":"50","continue":"","remainingItemCount":3}},"kind":"EndpointSliceList"}}"#
    );
    let page = page::<EndpointSlice>(text.as_bytes()).unwrap();
    assert_eq!(page.version.as_deref(), Some("50"));
    assert_eq!(page.continue_token, None);
    assert_eq!(page.nameless.len(), 2);
    assert!(page.items[0].object.is_ok() && page.items[1].object.is_err());
}

#[test]
fn an_empty_page_may_have_no_items_and_a_status_is_no_page() {
    let empty = r#"{"metadata":{"resourceVersion":"5"},"items":null}"#;
    assert_eq!(page::<Service>(empty.as_bytes()).unwrap().items, []);
    let status = r#"{"kind":"Status","metadata":{},"status":"Failure"}"#;
    let page = page::<Service>(status.as_bytes()).unwrap();
    assert_eq!(page.version, None, "a page without a version is refused");
}

#[test]
fn only_our_annotations_are_kept() {
    let text = r#"{"a":{"not":"text"},"lb-agent/algorithm":"random","b":"c"}"#;
    let ours: Ours = serde_json::from_str(text).unwrap();
    let kept: Vec<_> = ours.0.into_iter().collect();
    assert_eq!(
        kept,
        [("lb-agent/algorithm".to_owned(), "random".to_owned())]
    );
}

#[test]
fn a_bookmark_and_an_error_are_told_apart() {
    let mark = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
    let Event::Bookmark(Some(version), true) = event::<Node>(mark.as_bytes()).unwrap() else {
        panic!("{mark}");
    };
    assert_eq!(version, "9");
    let plain = mark.replace("initial-events-end", "else");
    let found = event::<Node>(plain.as_bytes()).unwrap();
    assert!(matches!(found, Event::Bookmark(Some(_), false)));
    let error = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"m"}}"#;
    let found = event::<Node>(error.as_bytes()).unwrap();
    assert!(matches!(found, Event::Ended(status) if status.code == 410));
}

proptest! {
    #[test]
    fn lines_and_pages_that_are_nearly_right_are_read_or_refused(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        end in any::<prop::sample::Index>(),
    ) {
        let line = format!(r#"{{"type":"ADDED","object":{SLICE}}}"#);
        let list = format!(r#"{{"metadata":{{"resourceVersion":"7"}},"items":[{SLICE},{SLICE}]}}"#);
        for text in [line, list] {
            let mut bytes = text.into_bytes();
            for (at, byte) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            // Cut in one of four cases, which is where most answers break.
            if end.index(4) == 0 {
                bytes.truncate(end.index(bytes.len()));
            }
            // Whatever comes out, nothing panics, and what was accepted names its object.
            if let Ok(Event::Applied(item, _)) = event::<EndpointSlice>(&bytes) {
                prop_assert!(!item.reference.to_string().is_empty());
            }
            drop(event::<Service>(&bytes));
            drop(event::<Node>(&bytes));
            if let Ok(page) = page::<EndpointSlice>(&bytes) {
                prop_assert!(page.items.len() + page.nameless.len() <= 2);
            }
            drop(page::<Service>(&bytes));
        }
    }
}

#[test]
fn a_slice_that_cannot_be_read_still_names_its_service_where_it_can() {
    let form = SLICE.replace(r#""port":80"#, r#""port":"http""#);
    let value = SLICE.replace(r#""addressType":"IPv4""#, r#""addressType":"IPv7""#);
    let service = |object: &str| {
        let (item, _) = applied(&format!(r#"{{"type":"ADDED","object":{object}}}"#));
        item.object.unwrap_err().service
    };
    let web = Some(ServiceKey::new("shop", "web"));
    assert_eq!(service(&form), web);
    assert_eq!(service(&value), web);
    for label in ["5", "\"\"", "null", "[\"web\"]"] {
        let odd = form.replace(
            r#""kubernetes.io/service-name":"web""#,
            &format!(r#""kubernetes.io/service-name":{label}"#),
        );
        assert_ne!(odd, form);
        assert_eq!(service(&odd), None, "{label}");
    }
}

#[test]
fn a_node_that_is_deleted_or_about_to_be_removed_leaves() {
    let taint =
        |key: &str| format!(r#","spec":{{"taints":[{{"key":"{key}","effect":"NoSchedule"}}]}}"#);
    let deleted = r#","deletionTimestamp":"2026-11-22T00:00:00Z""#;
    for (meta, rest, leaving) in [
        ("", String::new(), false),
        (deleted, String::new(), true),
        ("", taint("ToBeDeletedByClusterAutoscaler"), true),
        ("", taint("node.kubernetes.io/unschedulable"), false),
    ] {
        let object = format!(r#"{{"metadata":{{"name":"n"{meta}}}{rest}}}"#);
        let line = format!(r#"{{"type":"ADDED","object":{object}}}"#);
        let Event::Applied(item, _) = event::<Node>(line.as_bytes()).unwrap() else {
            panic!("{line}");
        };
        let Ok(Some(Object::Node(node))) = item.object else {
            panic!("{line}: {:?}", item.object);
        };
        assert_eq!(node.leaving, leaving, "{line}");
    }
}

#[test]
fn a_slice_tells_when_it_was_triggered() {
    let annotated = |time: &str| {
        let key = "endpoints.kubernetes.io/last-change-trigger-time";
        let annotations = format!(r#""annotations":{{"{key}":"{time}"}}"#);
        let object = SLICE.replace(r#""annotations":null"#, &annotations);
        let (item, _) = applied(&format!(r#"{{"type":"ADDED","object":{object}}}"#));
        let Ok(Some(Object::EndpointSlice(slice))) = item.object else {
            panic!("{object}: {:?}", item.object);
        };
        slice.triggered_micros
    };
    assert_eq!(annotated("1970-01-01T00:00:01.5Z"), Some(1_500_000));
    assert_eq!(
        annotated("yesterday"),
        None,
        "no reason to refuse the slice"
    );
}
