package journal

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"

	"github.com/kernexhq/kernex/pkg/strictjson"
)

const (
	headerBytes = 8
	// maxRecord bounds what is read as one record. The largest that is written,
	// a full queue of commands of 16 KiB with everything else, stays below 1 MiB.
	maxRecord = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encode(change map[string]json.RawMessage) ([]byte, error) {
	payload, err := json.Marshal(change)
	if err != nil {
		return nil, fmt.Errorf("encode a journal record: %w", err)
	}
	record := binary.BigEndian.AppendUint32(nil, uint32(len(payload))) //nolint:gosec // bounded by maxRecord
	record = binary.BigEndian.AppendUint32(record, crc32.Checksum(payload, castagnoli))
	return append(record, payload...), nil
}

// replay calls apply for each whole record and returns where they end. It ends
// without an error at a torn one, after which nothing whole follows.
func replay(data []byte, apply func(map[string]json.RawMessage)) (offset int, err error) {
	for offset < len(data) {
		change, n := decode(data[offset:])
		if change == nil {
			if _, after := next(data[offset:]); after {
				return offset, fmt.Errorf("the record at byte %d is damaged and others follow it", offset)
			}
			return offset, nil
		}
		apply(change)
		offset += n
	}
	return offset, nil
}

// decode returns the record at the start of data and its length, nil if it is
// not whole.
func decode(data []byte) (map[string]json.RawMessage, int) {
	if len(data) < headerBytes {
		return nil, 0
	}
	n := int(binary.BigEndian.Uint32(data))
	if n == 0 || n > maxRecord || n > len(data)-headerBytes {
		return nil, 0
	}
	payload := data[headerBytes : headerBytes+n]
	if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(data[4:]) || strictjson.Check(payload) != nil {
		return nil, 0
	}
	var change map[string]json.RawMessage
	if json.Unmarshal(payload, &change) != nil {
		return nil, 0
	}
	return change, headerBytes + n
}

// next reports whether a whole record follows the damaged one at the start of
// data, by its claimed length.
func next(data []byte) (n int, whole bool) {
	if len(data) < headerBytes {
		return 0, false
	}
	n = headerBytes + int(binary.BigEndian.Uint32(data))
	if n > maxRecord || n >= len(data) {
		return n, false
	}
	change, _ := decode(data[n:])
	return n, change != nil
}
