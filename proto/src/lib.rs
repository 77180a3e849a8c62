//! The gRPC contract between the provider (cluster side) and the node agent (host side).
//!
//! Nothing but generated code: the words are in `agent/v1/*.proto`. In the product only `provider::agent` and
//! `node_agent::grpc` name this crate; each converts to its own types at that edge.

/// Version 1 of the agent's services.
pub mod v1 {
    #![expect(
        missing_docs,
        clippy::all,
        clippy::too_many_lines,
        clippy::allow_attributes_without_reason,
        reason = "generated from agent/v1/*.proto, where the comments are"
    )]
    tonic::include_proto!("larder.agent.v1");
}
