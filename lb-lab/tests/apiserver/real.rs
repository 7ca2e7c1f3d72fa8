// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real API server, where it is installed.

use lb_lab::RealApiServer;
use serde_json::json;

use crate::{service, slice};

#[test]
fn a_real_server_takes_objects_where_one_is_installed() {
    if RealApiServer::assets().is_none() {
        let why = "KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver";
        #[expect(clippy::print_stderr, reason = "what is not tested is said")]
        {
            eprintln!("SKIPPED: {why}");
        }
        return;
    }
    let server = RealApiServer::start().unwrap();
    let mut service = service("a");
    service["spec"] = json!({"clusterIP": "10.0.0.77", "ports": [{"port": 80}]});
    server.apply(service.clone()).unwrap();
    service["spec"]["ports"][0]["port"] = 81.into();
    server.apply(service.clone()).unwrap();
    server.apply(slice("a", "10.1.0.1")).unwrap();
    service["spec"]["ports"][0]["port"] = 0.into();
    server.apply(service).unwrap_err();
    assert!(server.kubeconfig().is_file());
}
