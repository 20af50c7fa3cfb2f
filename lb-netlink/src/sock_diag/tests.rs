use super::*;

#[test]
fn an_answer_of_the_kernel_is_read_and_names_the_socket_that_is_ended() {
    // struct inet_diag_msg of a connected IPv6 socket with an IPv4-mapped peer.
    let mut answer = [0_u8; 72];
    answer[..2].copy_from_slice(&[libc::AF_INET6 as u8, 1]);
    answer[4..8].copy_from_slice(&[0x9c, 0x40, 0, 53]);
    answer[8 + 10..8 + 16].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
    answer[24 + 10..24 + 16].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 2]);
    answer[44..48].copy_from_slice(&7_u32.to_ne_bytes());
    answer[48..52].copy_from_slice(&1_u32.to_ne_bytes());
    let socket = InetSocket::read(InetProtocol::Udp, &answer).unwrap();
    assert_eq!(socket.local(), "[::ffff:10.0.0.1]:40000".parse().unwrap());
    assert_eq!(socket.peer(), "[::ffff:10.0.0.2]:53".parse().unwrap());
    assert_eq!((socket.cookie(), socket.state()), ((1 << 32) + 7, 1));
    let end = socket.destroy_request();
    assert_eq!(end[..2], [libc::AF_INET6 as u8, libc::IPPROTO_UDP as u8]);
    assert_eq!(end[8..], answer[4..52]);
}

#[test]
fn a_truncated_answer_is_no_socket() {
    assert_eq!(InetSocket::read(InetProtocol::Tcp, &[0; 51]), None);
    assert_eq!(InetSocket::read(InetProtocol::Tcp, &[]), None);
}

/// What a kernel answers that was built without the options.
#[test]
fn what_a_kernel_lacks_is_named_by_its_option() {
    let refused = KernelError::from_errno;
    let error = not_ended_at(0, refused(libc::EOPNOTSUPP)).unwrap_err();
    assert_eq!(error.to_string(), "this kernel cannot end sockets: it was built without CONFIG_INET_DIAG_DESTROY");
    for (protocol, option) in [(InetProtocol::Udp, "CONFIG_INET_UDP_DIAG"), (InetProtocol::Tcp, "CONFIG_INET_TCP_DIAG")]
    {
        let error = not_listed(protocol, refused(libc::ENOENT).into());
        assert!(matches!(error, SockDiagError::Unsupported { option: named, .. } if named == option), "{error}");
    }
    assert!(matches!(not_listed(InetProtocol::Udp, refused(libc::ENOMEM).into()), SockDiagError::Netlink(_)));
}

#[test]
fn a_socket_that_is_not_ended_is_gone_or_named() {
    let outcome = |errno| not_ended_at(7, KernelError::from_errno(errno));
    assert!(outcome(libc::ENOENT).unwrap().is_none() && outcome(libc::ESTALE).unwrap().is_none());
    assert!(matches!(outcome(libc::EPERM), Err(SockDiagError::NotPermitted)));
    let left = outcome(libc::EBUSY).unwrap().unwrap();
    assert_eq!((left.index, left.error.errno()), (7, libc::EBUSY));
}
