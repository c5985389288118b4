package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/go-cmp/cmp"
)

func TestCutter(t *testing.T) {
	var sent bytes.Buffer
	var want []string
	write := func(p packets.ControlPacket, short string) {
		t.Helper()
		if err := p.Write(&sent); err != nil {
			t.Fatal(err)
		}
		want = append(want, short)
	}
	publish := func(length int) {
		p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		p.Qos, p.MessageID, p.TopicName = 1, uint16(length%60000), "t"
		p.Payload = []byte(strings.Repeat("x", length-5)) // besides topic and identifier
		write(p, fmt.Sprint("t ", p.MessageID, " ", min(length, 200)-5))
	}
	ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	ack.MessageID = 7
	write(ack, "7")
	for _, length := range []int{5, 127, 128, 199, 200, 201, 16_383, 16_384, 3 << 20, 6} {
		publish(length)
		write(packets.NewControlPacket(packets.Pingresp), "ping")
	}
	suback := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	suback.ReturnCodes = make([]byte, 300) // long, and no message
	write(suback, "300")

	for name, from := range map[string]io.Reader{
		"whole":       bytes.NewReader(sent.Bytes()),
		"in bytes":    iotest.OneByteReader(bytes.NewReader(sent.Bytes())),
		"in halves":   iotest.HalfReader(bytes.NewReader(sent.Bytes())),
		"with errors": iotest.DataErrReader(bytes.NewReader(sent.Bytes())),
	} {
		t.Run(name, func(t *testing.T) {
			c := &cutter{from: from, most: 200}
			var got []string
			for {
				packet, err := packets.ReadPacket(c)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				switch p := packet.(type) {
				case *packets.PublishPacket:
					got = append(got, fmt.Sprint(p.TopicName, " ", p.MessageID, " ", len(p.Payload)))
				case *packets.PubackPacket:
					got = append(got, fmt.Sprint(p.MessageID))
				case *packets.SubackPacket:
					got = append(got, fmt.Sprint(len(p.ReturnCodes)))
				default:
					got = append(got, "ping")
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := (&cutter{from: strings.NewReader("\x30\xff\xff\xff\xff\x01"), most: 200}).Read(make([]byte, 10)); !errors.Is(err, errPacketLength) {
		t.Errorf("error %v of a length of five bytes", err)
	}
}
