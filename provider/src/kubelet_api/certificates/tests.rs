//! Files that change under us.

use super::*;

fn write_pair(folder: &Path, name: &str) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    std::fs::write(folder.join("tls.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
}

fn files(folder: &Path) -> Files {
    Files {
        pair: Some((folder.join("tls.crt"), folder.join("tls.key"))),
        client_ca: Some(folder.join("tls.crt")),
        node: "n".into(),
        address: [127, 0, 0, 1].into(),
    }
}

#[tokio::test]
async fn new_files_are_taken_and_broken_ones_are_not() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(load(&files(folder.path())), Err(CertificateError::File { .. })));
    write_pair(folder.path(), "one");
    let current: Current = Arc::new(ArcSwap::from_pointee(load(&files(folder.path())).unwrap()));
    let first = current.load_full();
    let files = files(folder.path());
    let follow = keep_current(files, current.clone());
    let change = async {
        // Written until it is seen: the watch may not be there yet at the first time.
        for _ in 0..100 {
            write_pair(folder.path(), "two");
            tokio::time::sleep(Duration::from_millis(50)).await;
            if !Arc::ptr_eq(&current.load_full(), &first) {
                return;
            }
        }
        panic!("the new certificate is never taken");
    };
    tokio::select! {
        () = follow => unreachable!("it never ends"),
        () = change => {}
    }
    std::fs::write(folder.path().join("tls.crt"), "nonsense").unwrap();
    assert!(load(&super::tests::files(folder.path())).is_err());
}

#[test]
fn without_files_a_certificate_is_made() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let files = Files { pair: None, client_ca: None, node: "n".into(), address: [127, 0, 0, 1].into() };
    assert!(load(&files).is_ok());
}

#[tokio::test(start_paused = true)]
async fn files_that_cannot_be_watched_are_looked_at_now_and_then() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("certificates");
    std::fs::create_dir(&folder).unwrap();
    write_pair(&folder, "one");
    let current: Current = Arc::new(ArcSwap::from_pointee(load(&files(&folder)).unwrap()));
    let first = current.load_full();
    std::fs::remove_dir_all(&folder).unwrap();
    let change = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::create_dir(&folder).unwrap();
        write_pair(&folder, "two");
        while Arc::ptr_eq(&current.load_full(), &first) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = keep_current(files(&folder), current.clone()) => unreachable!("it never ends"),
        changed = tokio::time::timeout(Duration::from_secs(60), change) => changed.expect("in time"),
    }
}
