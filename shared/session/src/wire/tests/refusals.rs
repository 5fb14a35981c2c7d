//! What is refused, when, and what an unknown code becomes.

use super::{decoded, encoded, hex};
use crate::id::{FlowId, MAX_VARINT, Offset};
use crate::wire::codec::{MAX_ACKS, MAX_BODY, MAX_PAYLOAD, MAX_TAKES, WireError};
use crate::wire::frame::{
    Ack, CloseCode, Control, Data, FlowCode, Frame, LinkCloseReason, OpenError, RejectReason,
};
use crate::wire::kind::{Kind, reserved};
use bytes::Bytes;

#[test]
fn an_unknown_type_is_refused_at_its_first_byte() {
    for number in 0..=u8::MAX {
        let expected = match Kind::from_wire(number) {
            Some(_) => Ok(None),
            None => Err(WireError::UnknownType(number)),
        };

        assert_eq!(decoded(&[number]), expected);
    }
}

#[test]
fn types_kept_for_later_are_unknown() {
    for number in reserved::DELIVERY
        .chain(reserved::HAND_OFF)
        .chain(reserved::OFFLINE_OBJECTS)
        .filter(|number| {
            ![Kind::Deliver, Kind::OpenHandOff, Kind::Forget]
                .map(Kind::to_wire)
                .contains(number)
        })
    {
        assert_eq!(Kind::from_wire(number), None);
    }
}

#[test]
fn a_body_too_long_for_its_type_is_refused_with_its_header() {
    for &kind in Kind::ALL {
        let header = |length: usize| {
            let [_, a, b, c] = u32::try_from(length).expect("short").to_be_bytes();
            [kind.to_wire(), a, b, c]
        };
        let most = kind.max_body();

        if most > 0 {
            assert_eq!(decoded(&header(most)), Ok(None), "{}", kind.name());
        }
        assert_eq!(
            decoded(&header(most + 1)),
            Err(WireError::BodyTooLong {
                kind: kind.to_wire(),
                length: u32::try_from(most + 1).expect("short"),
            }),
        );
        assert!(most <= MAX_BODY);
    }
}

#[test]
fn a_body_must_end_with_its_last_field() {
    assert_eq!(decoded(&hex("10 000001 05")).map(|f| f.is_some()), Ok(true));
    assert_eq!(
        decoded(&hex("10 000002 05 00")),
        Err(WireError::TrailingBytes)
    );
    assert_eq!(decoded(&hex("10 000001 40")), Err(WireError::BodyTooShort));
    assert_eq!(decoded(&hex("10 000000")), Err(WireError::BodyTooShort));
}

#[test]
fn long_forms_of_small_numbers_are_taken() {
    for bytes in ["10 000001 05", "10 000002 4005", "10 000004 80000005"] {
        let (frame, _) = decoded(&hex(bytes)).unwrap().unwrap();
        assert_eq!(frame, Frame::Ping { nonce: 5 });
    }
}

#[test]
fn data_must_carry_something_and_end_within_the_offsets() {
    assert_eq!(bad("20 000003 01 00 00"), "DATA carries nothing");
    assert_eq!(bad("20 000004 01 00 02 aa"), "DATA has unknown flags");
    assert_eq!(
        bad("20 00000b 01 ffffffffffffffff 00 aa"),
        "DATA ends beyond the last offset"
    );
    assert_eq!(
        bad("20 00000a 01 ffffffffffffffff 01"),
        "DATA ends beyond the last offset"
    );

    let last = Frame::Data(Data {
        flow: FlowId(1),
        offset: Offset(MAX_VARINT - 1),
        fin: true,
        payload: Bytes::new(),
    });
    assert_eq!(decoded(&encoded(&last)).unwrap().unwrap().0, last);
}

#[test]
fn a_piece_must_lie_within_a_datagram() {
    let is_none = "DATAGRAM_PIECE is no part of a datagram";
    let piece = |length: &str, place: &str, payload: &str| {
        hex(&format!(
            "2a 0000{length} 01 04 c0000201 0035 00 {place} {payload}"
        ))
    };
    assert!(decoded(&piece("0c", "05 06", "aa")).unwrap().is_some());
    for (length, place, payload) in [("0b", "05 06", ""), ("0d", "05 06", "aabb")] {
        let bytes = piece(length, place, payload);
        assert_eq!(decoded(&bytes), Err(WireError::BadValue(is_none)));
    }
    assert!(
        decoded(&piece("0f", "05 8000ffff", "aa"))
            .unwrap()
            .is_some()
    );
    let too_long = decoded(&piece("0f", "05 80010000", "aa"));
    assert_eq!(too_long, Err(WireError::BadValue(is_none)));
}

#[test]
fn a_payload_of_more_than_16_kib_is_refused_whatever_room_small_numbers_leave() {
    let mut bytes = hex("20 004004 01 00 00");
    bytes.resize(bytes.len() + MAX_PAYLOAD + 1, 7);

    assert_eq!(
        decoded(&bytes),
        Err(WireError::BadValue("payload is longer than 16 KiB"))
    );
}

#[test]
fn values_that_never_hold_are_refused() {
    assert_eq!(
        bad("21 000004 01 05 06 09"),
        "ACK releases more than it accepts"
    );
    assert_eq!(bad("05 000001 00"), "link number is zero");
    assert_eq!(bad("37 000002 01 00"), "link number is zero");
    assert_eq!(bad("36 000003 00 01 01"), "control message has number zero");
    assert_eq!(
        bad("33 00000b 01 01 00 c000000100000000"),
        "errno of OPEN_ERR has over 32 bits"
    );
    assert_eq!(
        bad("06 000004 07 00 01 01"),
        "RESUME_REJECT lists flows, not expired"
    );
    let hello = |versions: &str, floor: &str| {
        format!("01 000016 {versions} 00 {} 01 01 {floor}", "11".repeat(16))
    };
    assert_eq!(
        bad(&hello("02 01", "01")),
        "lowest version is above the highest"
    );
    assert_eq!(bad(&hello("01 01", "00")), "floor is zero");
    assert_eq!(
        bad("50 000017 01 02 01 04 0a000001 0050 04 0a000001 0050 08 09 00 03 01 05"),
        "OPEN_HAND_OFF of one message up to FIN"
    );
}

#[test]
fn lists_beyond_their_limit_are_refused_though_they_would_fit() {
    let mut bytes = vec![Kind::FlowState.to_wire(), 0, 0, 0];
    for _ in 0..=MAX_ACKS {
        bytes.extend_from_slice(&[1, 1, 1, 1]);
    }
    let [_, a, b, c] = u32::try_from(bytes.len() - 4).unwrap().to_be_bytes();
    bytes[1..4].copy_from_slice(&[a, b, c]);

    assert_eq!(
        decoded(&bytes),
        Err(WireError::BadValue("FLOW_STATE lists too many flows"))
    );

    let mut bytes = hex("50 000000 01 02 01 04 0a000001 0050 04 0a000001 0050 08 09 00 03 02 05");
    for _ in 0..=MAX_TAKES {
        bytes.extend_from_slice(&[1; 18]);
    }
    let [_, a, b, c] = u32::try_from(bytes.len() - 4).unwrap().to_be_bytes();
    bytes[1..4].copy_from_slice(&[a, b, c]);

    assert_eq!(
        decoded(&bytes),
        Err(WireError::BadValue("OPEN_HAND_OFF lists too many flows"))
    );
}

#[test]
fn an_unknown_code_that_only_says_why_becomes_the_nearest_known_one() {
    let control = |message| Ok(Some(Frame::Control { number: 1, message }));
    let flow = FlowId(2);
    let code = FlowCode::SocketError;
    let first = |bytes: &str| decoded(&hex(bytes)).map(|found| found.map(|(frame, _)| frame));

    assert_eq!(
        first("33 000004 01 02 3f 16"),
        control(Control::OpenErr {
            flow,
            error: OpenError::Other(22)
        })
    );
    assert_eq!(
        first("34 000004 01 02 07 3f"),
        control(Control::Reset {
            flow,
            end: Offset(7),
            code
        })
    );
    assert_eq!(
        first("35 000003 01 02 3f"),
        control(Control::Stop { flow, code })
    );
    assert_eq!(
        first("39 000002 01 3f"),
        control(Control::SessionClose {
            code: CloseCode::Internal
        })
    );
    assert_eq!(
        first("12 000001 3f"),
        Ok(Some(Frame::LinkClose {
            reason: LinkCloseReason::Unneeded
        }))
    );
    let Ok(Some(Frame::ResumeReject(reject))) = first("06 000005 3f 4064 01 01") else {
        panic!("an unknown reason is still a reject");
    };
    assert_eq!(reject.reason, RejectReason::Busy);
    assert_eq!(reject.retry_after.as_millis(), 100);
    assert!(reject.released.is_empty());
}

#[test]
fn an_unknown_code_that_says_what_to_do_is_refused() {
    let open = |protocol: &str, family: &str, on_expiry: &str| {
        let address = format!("{family} 0a000001 0050");
        format!("31 000014 01 02 {protocol} {address} {address} 08 09 {on_expiry}")
    };

    assert!(decoded(&hex(&open("01", "04", "01"))).unwrap().is_some());
    assert_eq!(bad(&open("3f", "04", "00")), "OPEN of an unknown protocol");
    assert_eq!(bad(&open("01", "05", "00")), "address of an unknown family");
    assert_eq!(
        bad(&open("01", "04", "3f")),
        "OPEN with an unknown expiry policy"
    );
}

#[test]
fn payloads_are_slices_of_what_came_in() {
    let ack = Ack {
        flow: FlowId(1),
        accepted: Offset(2),
        released: Offset(1),
        limit: Offset(9),
    };
    let data = Data {
        flow: FlowId(1),
        offset: Offset(0),
        fin: false,
        payload: Bytes::from("abc"),
    };
    let stream = [encoded(&Frame::Data(data)), encoded(&Frame::Ack(ack))].concat();
    let mut input = Bytes::from(stream);
    let start = input.as_ptr();

    let Ok(Some(Frame::Data(data))) = crate::wire::codec::decode(&mut input) else {
        panic!("DATA comes first");
    };

    assert_eq!(data.payload.as_ptr(), start.wrapping_add(7));
    assert_eq!(
        crate::wire::codec::decode(&mut input),
        Ok(Some(Frame::Ack(ack)))
    );
}

/// What is wrong with the frame of these digits.
fn bad(digits: &str) -> &'static str {
    decoded(&hex(digits)).expect_err("to be refused").what()
}
