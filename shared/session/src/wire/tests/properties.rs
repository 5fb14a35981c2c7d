//! What holds for any frame and for any bytes.

use super::arbitrary::frame;
use super::{decoded, encoded};
use crate::wire::codec::{
    HEADER, MAX_BODY, MAX_DATA_HEADER, MAX_PAYLOAD, decode, encode, encode_data_header, frame_len,
};
use crate::wire::frame::Frame;
use crate::wire::kind::Kind;
use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::prop_oneof;
use proptest::sample::{Index, select};

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_and_nothing_behind_it_is_touched(
        frame in frame(),
        behind in vec(any::<u8>(), 0..40),
    ) {
        let bytes = encoded(&frame);
        let stream = [&bytes[..], &behind[..]].concat();

        let (again, taken) = decoded(&stream).expect("valid").expect("whole");

        prop_assert_eq!(again, frame);
        prop_assert_eq!(taken, bytes.len());
        prop_assert!(taken <= HEADER + MAX_BODY);
    }

    #[test]
    fn a_part_of_a_frame_is_left_alone(frame in frame(), cut in any::<Index>()) {
        let bytes = encoded(&frame);
        let part = &bytes[..cut.index(bytes.len())];
        let mut input = Bytes::copy_from_slice(part);

        prop_assert_eq!(decode(&mut input), Ok(None));
        prop_assert_eq!(&input[..], part);
        let known = frame_len(part).expect("valid so far");
        prop_assert_eq!(known, (part.len() >= HEADER).then_some(bytes.len()));
    }

    #[test]
    fn frames_in_any_pieces_are_the_same_frames(
        frames in vec(frame(), 1..12),
        sizes in vec(prop_oneof![1..8_usize, 1..600_usize, 1..20_000_usize], 1..30),
    ) {
        let mut stream = Vec::new();
        frames.iter().for_each(|frame| encode(frame, &mut stream));

        let mut arrived = Vec::new();
        let mut held = BytesMut::new();
        let mut rest = &stream[..];
        for size in sizes.iter().cycle() {
            let (piece, later) = rest.split_at((*size).min(rest.len()));
            rest = later;
            held.extend_from_slice(piece);
            let mut input = held.split().freeze();
            while let Some(frame) = decode(&mut input).expect("valid") {
                arrived.push(frame);
            }
            held = BytesMut::from(input);
            if rest.is_empty() {
                break;
            }
        }

        prop_assert_eq!(arrived, frames);
        prop_assert!(held.is_empty());
    }

    #[test]
    fn any_bytes_give_frames_or_an_error_and_never_a_panic(
        bytes in prop_oneof![vec(any::<u8>(), 0..300), headed()],
    ) {
        check_all(&bytes);
    }

    #[test]
    fn a_frame_with_wrong_bytes_gives_frames_or_an_error_and_never_a_panic(
        frames in vec(frame(), 1..4),
        wrong in vec((any::<Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes: Vec<u8> = frames.iter().flat_map(encoded).collect();
        for (place, value) in wrong {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }

        check_all(&bytes);
    }

    #[test]
    fn a_data_header_and_its_payload_make_the_frame(frame in frame()) {
        if let Frame::Data(data) = &frame {
            let mut bytes = vec![7];
            encode_data_header(data.flow, data.offset, data.fin, data.payload.len(), &mut bytes);
            prop_assert!(bytes.len() <= 1 + MAX_DATA_HEADER);

            bytes.extend_from_slice(&data.payload);

            prop_assert_eq!(&bytes[1..], &encoded(&frame)[..]);
        }
    }
}

/// A header of a known type with a body that may or may not fit it.
fn headed() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![4 => vec(any::<u8>(), 0..200), 1 => vec(any::<u8>(), MAX_PAYLOAD + 80)];
    (select(Kind::ALL.to_vec()), body).prop_map(|(kind, body)| {
        let [_, a, b, c] = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&[kind.to_wire(), a, b, c][..], &body[..]].concat()
    })
}

/// Decodes to the end: each frame takes exactly what its header says, and is itself encodable.
fn check_all(bytes: &[u8]) {
    let mut input = Bytes::copy_from_slice(bytes);
    loop {
        let before = input.clone();
        match decode(&mut input) {
            Ok(Some(frame)) => {
                let announced = frame_len(&before).expect("decoded").expect("whole");
                assert_eq!(before.len() - input.len(), announced);
                let (again, _) = decoded(&encoded(&frame)).expect("valid").expect("whole");
                assert_eq!(again, frame);
            }
            Ok(None) | Err(_) => {
                assert_eq!(input, before);
                return;
            }
        }
    }
}
