//! Who somebody is and what they may do: the API server's own answers.

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use super::{ClusterError, KubeCluster, within};

/// Reviews of tokens and of rights.
#[async_trait]
pub trait AccessApi: Send + Sync + std::fmt::Debug {
    /// Whose token this is; `None` when it is nobody's.
    async fn review_token(&self, token: &str) -> Result<Option<UserInfo>, ClusterError>;

    /// Whether a user may do something.
    async fn may(&self, user: &UserInfo, what: &ResourceAttributes) -> Result<bool, ClusterError>;
}

#[async_trait]
impl AccessApi for KubeCluster {
    async fn review_token(&self, token: &str) -> Result<Option<UserInfo>, ClusterError> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client());
        let answer = within(|| "review token".to_owned(), api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        Ok(status.authenticated.unwrap_or_default().then_some(status.user).flatten())
    }

    async fn may(&self, user: &UserInfo, what: &ResourceAttributes) -> Result<bool, ClusterError> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username.clone(),
                uid: user.uid.clone(),
                groups: user.groups.clone(),
                extra: user.extra.clone(),
                resource_attributes: Some(what.clone()),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client());
        let answer = within(|| "review access".to_owned(), api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed && !status.denied.unwrap_or_default()))
    }
}
