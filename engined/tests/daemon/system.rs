//! The daemon itself: version, info, events, traces, reflection, health.

use prost::Message;
use proto_engine as wire;
use strata_trace::{SPANS_TRAILER, Spans, TRACEPARENT, TraceParent};
use tokio_stream::StreamExt;
use tonic::Request;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::{Below, Ran, Stack, above_both, foreground};

fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let context = TraceParent::sampled(7, 7).to_string();
    request.metadata_mut().insert(TRACEPARENT, context.parse().unwrap());
    request
}

fn names(bytes: &[u8]) -> Vec<String> {
    Spans::decode(bytes).unwrap().spans.into_iter().map(|span| span.name).collect()
}

above_both! {
    async fn who_answers(stack: &mut Stack) {
        let version = stack.system().version(wire::VersionRequest {}).await.unwrap().into_inner();
        let expected = if stack.below == Below::Ours { "shimd" } else { "containerd" };
        assert_eq!(version.supervisor_name, expected);
        stack.detached("one", "sleep 1000").await;
        let info = stack.system().info(wire::InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.containers, info.running, info.images, info.subnet.as_str()), (1, 1, 1, "10.213.0.0/24"));
    }

    async fn a_run_in_events(stack: &mut Stack) {
        let before = prost_types::Timestamp::from(std::time::SystemTime::now());
        stack.shell("exit 3").await;
        let filters = vec![wire::Filter { key: "type".to_owned(), values: vec!["container".to_owned()] }];
        let until = Some(prost_types::Timestamp::from(std::time::SystemTime::now()));
        let request = wire::EventsRequest { since: Some(before), until, filters };
        let mut stream = stack.system().events(request).await.unwrap().into_inner();
        let mut actions = Vec::new();
        while let Some(event) = stream.message().await.unwrap() {
            if event.action == "die" {
                assert_eq!(event.attributes["exitCode"], "3");
            }
            actions.push(event.action);
        }
        assert_eq!(actions, ["create", "start", "die", "destroy"]);
    }

    async fn a_traced_run_gives_its_steps_back(stack: &mut Stack) {
        let kind = wire::run_request::Kind::Open(foreground(&["true"]));
        let requests = tokio_stream::iter([wire::RunRequest { kind: Some(kind) }]).chain(tokio_stream::pending());
        let mut stream = stack.containers().run(traced(requests)).await.unwrap().into_inner();
        let mut ran = Ran::default();
        while let Some(event) = stream.message().await.unwrap() {
            ran.take(event.kind.unwrap());
        }
        let names = names(&ran.spans);
        for step in ["validate", "configure", "take-over", "assemble", "connect", "create", "start", "watch", "report"] {
            assert!(names.iter().any(|name| name == step), "{step} in {names:?}");
        }
        if stack.below == Below::Ours {
            for inner in ["lowrun create", "pivot", "seccomp"] {
                assert!(names.iter().any(|name| name == inner), "{inner} in {names:?}");
            }
        }
        let untraced = stack.shell("true").await;
        assert!(untraced.spans.is_empty());
    }

    async fn a_traced_call_gives_its_spans_in_the_trailer(stack: &mut Stack) {
        let spec = foreground(&["true"]).spec;
        let request = wire::CreateRequest { spec, ..Default::default() };
        let made = stack.containers().create(traced(request)).await.unwrap();
        let spans = made.metadata().get_bin(SPANS_TRAILER).unwrap().to_bytes().unwrap();
        assert!(names(&spans).contains(&"take-over".to_owned()));
        let refused = wire::CreateRequest::default();
        let status = stack.containers().create(traced(refused)).await.unwrap_err();
        let spans = status.metadata().get_bin(SPANS_TRAILER).unwrap().to_bytes().unwrap();
        assert!(names(&spans).contains(&"validate".to_owned()));
    }

    async fn reflection_and_health(stack: &mut Stack) {
        let mut reflection = ServerReflectionClient::new(stack.connection());
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers =
            reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
        let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
        else {
            panic!("no list of services");
        };
        let services: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
        for expected in ["strata.engine.v1.Containers", "strata.engine.v1.Images", "strata.engine.v1.System"] {
            assert!(services.contains(&expected), "{services:?}");
            let request = HealthCheckRequest { service: expected.to_owned() };
            let health = HealthClient::new(stack.connection()).check(request).await.unwrap().into_inner();
            assert_eq!(health.status, 1, "{expected}");
        }
    }
}
