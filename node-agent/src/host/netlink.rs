//! Links, addresses and routes, through rtnetlink; and the packet filter, through `nft`.
//!
//! Functions that act on "this namespace" act on the network namespace of the calling thread: a netlink socket belongs to
//! the namespace that it was opened in.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, BorrowedFd},
    process::Stdio,
};

use futures::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder, new_connection,
    packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
    },
};
use tokio::io::AsyncWriteExt as _;

/// Name of the link inside a pod.
pub const POD_LINK: &str = "eth0";

/// An IPv4 address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Net {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the network.
    pub prefix_len: u8,
}

/// A pod's side of its link.
#[derive(Debug, Clone)]
pub struct PodLink {
    /// Name of the other side, on the host.
    pub host_side: String,
    /// The pod's address.
    pub address: Ipv4Net,
    /// Where everything else is reached.
    pub gateway: Ipv4Addr,
}

/// Makes a bridge with an address, brings it up, and says its index. Doing it again is free.
///
/// # Errors
/// When the kernel refuses, or a link of that name is not a bridge.
pub async fn ensure_bridge(name: &str, address: Ipv4Net) -> io::Result<u32> {
    with_handle(async |handle| {
        let existing = find_link(&handle, name).await?;
        if existing.is_none() {
            handle.link().add(LinkBridge::new(name).build()).execute().await.map_err(to_io)?;
        }
        let link = find_link(&handle, name).await?.ok_or_else(|| io::Error::other("the bridge vanished"))?;
        if !is_bridge(&link) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("link {name} is not a bridge")));
        }
        let index = link.header.index;
        let add = handle.address().add(index, address.address.into(), address.prefix_len);
        add.replace().execute().await.map_err(to_io)?;
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(to_io)?;
        Ok(index)
    })
    .await
}

/// Attaches the host's side of a pod's link to the bridge and brings it up.
///
/// # Errors
/// When the link or the bridge is not there.
pub async fn attach_to_bridge(link: &str, bridge_index: u32) -> io::Result<()> {
    with_handle(async |handle| bring_up(&handle, link, |message| message.controller(bridge_index)).await).await
}

/// Removes a link. One that is not there is not an error.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove_link(name: &str) -> io::Result<()> {
    with_handle(async |handle| match find_link(&handle, name).await? {
        Some(link) => handle.link().del(link.header.index).execute().await.map_err(to_io),
        None => Ok(()),
    })
    .await
}

/// Gives the calling thread's network namespace its loopback, its link to `host` and its routes. Blocks.
///
/// # Errors
/// When the kernel refuses.
pub fn set_up_pod_network(link: &PodLink, host: &File) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(with_handle(async |handle| {
        let peer = BorrowedFd::as_raw_fd(&std::os::fd::AsFd::as_fd(host));
        handle.link().add(veth(link, peer)).execute().await.map_err(to_io)?;
        handle.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await.map_err(to_io)?;
        bring_up(&handle, POD_LINK, |message| message).await?;
        let own = find_link(&handle, POD_LINK).await?.ok_or_else(|| io::Error::other("the pod's link vanished"))?;
        let Ipv4Net { address, prefix_len } = link.address;
        handle.address().add(own.header.index, address.into(), prefix_len).execute().await.map_err(to_io)?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(link.gateway).build();
        handle.route().add(default).execute().await.map_err(to_io)
    }))
}

/// Hands a ruleset to `nft -f -`, as one transaction.
///
/// # Errors
/// When `nft` cannot be run, or refuses: then with its words.
pub async fn apply_nft(ruleset: &str) -> io::Result<()> {
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|err| io::Error::new(err.kind(), format!("run nft (package nftables): {err}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(ruleset.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("nft refused: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// A link of a pod, both sides, the other one already in the namespace that `host` is open on.
///
/// The hardware address follows from the IPv4 address (`0a:58` and its four bytes, the convention of the CNI bridge
/// plugin), so that a neighbour's table is right even when an address is soon given out again.
fn veth(link: &PodLink, host: i32) -> LinkMessage {
    let mut peer = LinkUnspec::new_with_name(&link.host_side).build();
    peer.attributes.push(LinkAttribute::NetNsFd(host));
    let [a, b, c, d] = link.address.address.octets();
    let mut message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
        .name(POD_LINK)
        .address(vec![0x0a, 0x58, a, b, c, d])
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    message.header.index = 0;
    message
}

/// Brings up one side of a pod's link, without an IPv6 address of its own making: pods have IPv4 addresses, and what each link
/// says of its other one to all others on the bridge grows with the square of the pods that start together.
async fn bring_up(
    handle: &Handle,
    name: &str,
    further: impl Fn(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) -> io::Result<()> {
    let message = || further(LinkUnspec::new_with_name(name).up());
    let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let without = message().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_address]));
    match handle.link().set(without.build()).execute().await.map_err(to_io) {
        // This kernel has no IPv6, or it is switched off.
        Err(err) if err.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            handle.link().set(message().build()).execute().await.map_err(to_io)
        }
        done => done,
    }
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        let LinkAttribute::LinkInfo(infos) = attribute else { return false };
        infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)))
    })
}

async fn find_link(handle: &Handle, name: &str) -> io::Result<Option<LinkMessage>> {
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(rtnetlink::Error::NetlinkError(err)) if err.raw_code() == -libc::ENODEV => Ok(None),
        Err(err) => Err(to_io(err)),
    }
}

/// Opens a socket in this namespace, and drives it for as long as `work` takes.
async fn with_handle<T>(work: impl AsyncFnOnce(Handle) -> io::Result<T>) -> io::Result<T> {
    let (connection, handle, _) = new_connection()?;
    tokio::select! {
        biased;
        // Dropping the connection is safe: it happens once the work is done, and nobody else uses the socket.
        result = work(handle) => result,
        () = connection => Err(io::Error::other("the netlink connection ended")),
    }
}

fn to_io(err: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &err {
        return io::Error::from_raw_os_error(-message.raw_code());
    }
    io::Error::other(err)
}
