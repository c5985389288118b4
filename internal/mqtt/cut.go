package mqtt

import (
	"encoding/binary"
	"errors"
	"io"
)

// maxInboundBytes is how much of a message is read: 1 MiB, topic included. What a message has beyond that is skipped.
// MQTT lets a device send 256 MB, 3.1.1 has no way to tell the broker of a limit, and paho makes room for all that a
// packet says it has. To end the connection would not help: the broker would send a message of QoS 1 again.
const maxInboundBytes = 1 << 20

var errPacketLength = errors.New("the broker sends a packet with a length of more than four bytes")

// cutter is the stream of packets that comes from a broker, in which each PUBLISH that is too long is made shorter.
type cutter struct {
	from io.Reader
	most int

	header     []byte // to be given next
	room       [5]byte
	pass, skip int // of the packet: bytes to be given after the header, and to be skipped then
}

// Read implements [io.Reader].
func (c *cutter) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(c.header) == 0 && c.pass == 0 {
		if c.skip > 0 {
			skipped, err := io.CopyN(io.Discard, c.from, int64(c.skip))
			c.skip -= int(skipped)
			if err != nil {
				return 0, err
			}
		}
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if len(c.header) > 0 {
		n := copy(p, c.header)
		c.header = c.header[n:]
		return n, nil
	}
	n, err := c.from.Read(p[:min(len(p), c.pass)])
	c.pass -= n
	return n, err
}

// next reads the fixed header of a packet (MQTT 3.1.1, 2.2).
func (c *cutter) next() error {
	header, length := c.room[:1], 0
	if _, err := io.ReadFull(c.from, header); err != nil {
		return err
	}
	for shift := 0; ; shift += 7 {
		if shift > 21 {
			return errPacketLength
		}
		header = c.room[:len(header)+1]
		last := header[len(header)-1:]
		if _, err := io.ReadFull(c.from, last); err != nil {
			return err
		}
		if length |= int(last[0]&0x7f) << shift; last[0] < 0x80 {
			break
		}
	}
	const publish = 3
	c.pass = length
	if header[0]>>4 == publish && length > c.most {
		c.pass, c.skip = c.most, length-c.most
		header = binary.AppendUvarint(header[:1], uint64(c.most)) //nolint:gosec // positive; the encoding is the same
	}
	c.header = header
	return nil
}
