package shadow

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Each row is a conversation as device libraries know it: what the device sends and
// what it must be answered.
func TestAnswers(t *testing.T) {
	const (
		old  = `{"timestamp":1700000000000}`
		new  = `{"timestamp":1700000100500}`
		full = `{"state":{"delta":{"state":"open"},"desired":{"state":"open"},"reported":{"battery":90,"state":"closed"}},` +
			`"metadata":{"desired":{"state":` + old + `},"reported":{"battery":` + old + `,"state":` + old + `}},"version":12,"timestamp":1700000000000}`
	)
	stored := Stored{
		Reported: `{"battery":90,"state":"closed"}`, Desired: `{"state":"open"}`,
		Metadata: `{"reported":{"state":` + old + `,"battery":` + old + `},"desired":{"state":` + old + `}}`,
		Version:  12, Timestamp: before,
	}
	tests := map[string]struct {
		stored Stored
		sent   string
		want   string
	}{
		"get": {
			stored: stored, sent: `{"type":"get","clientToken":"t"}`,
			want: `{"type":"get","result":0,"timestamp":1700000100,"clientToken":"t","payload":` + full + `}`,
		},
		"get of an empty shadow": {
			sent: `{"type":"get","clientToken":"t"}`,
			want: `{"type":"get","result":0,"timestamp":1700000100,"clientToken":"t","payload":{"state":{"reported":{}},"metadata":{"reported":{}},"version":0,"timestamp":0}}`,
		},
		"get where the device has complied: no delta": {
			stored: Stored{Reported: `{"a":1}`, Desired: `{"a":1.0}`, Version: 2, Timestamp: before}, sent: `{"type":"get","clientToken":5}`,
			want: `{"type":"get","result":0,"timestamp":1700000100,"clientToken":5,"payload":{"state":{"desired":{"a":1.0},"reported":{"a":1}},` +
				`"metadata":{"desired":{"a":` + old + `},"reported":{"a":` + old + `}},"version":2,"timestamp":1700000000000}}`,
		},
		"get without a token": {
			sent: `{"type":"get"}`,
			want: `{"type":"get","result":0,"timestamp":1700000100,"payload":{"state":{"reported":{}},"metadata":{"reported":{}},"version":0,"timestamp":0}}`,
		},
		"update": {
			stored: stored, sent: `{"type":"update","state":{"reported":{"state":"open"}},"version":12,"clientToken":"t"}`,
			want: `{"type":"update","result":0,"timestamp":1700000100,"clientToken":"t","payload":{"state":{"reported":{"state":"open"}},` +
				`"metadata":{"reported":{"state":` + new + `}},"version":13,"timestamp":1700000100500}}`,
		},
		"update of equal values: sent back with their old time": {
			stored: stored, sent: `{"type":"update","state":{"reported":{"battery":90,"more":{"n":1}}},"version":0,"clientToken":"t"}`,
			want: `{"type":"update","result":0,"timestamp":1700000100,"clientToken":"t","payload":{"state":{"reported":{"battery":90,"more":{"n":1}}},` +
				`"metadata":{"reported":{"battery":` + old + `,"more":{"n":` + new + `}}},"version":13,"timestamp":1700000100500}}`,
		},
		"null deletes": {
			stored: stored, sent: `{"type":"update","state":{"reported":{"battery":null}},"clientToken":"t"}`,
			want: `{"type":"update","result":0,"timestamp":1700000100,"clientToken":"t","payload":{"state":{"reported":{"battery":null}},` +
				`"metadata":{"reported":{"battery":` + new + `}},"version":13,"timestamp":1700000100500}}`,
		},
		"acknowledgement": {
			stored: stored, sent: `{"type":"update","state":{"desired":null},"clientToken":"t"}`,
			want: `{"type":"update","result":0,"timestamp":1700000100,"clientToken":"t","payload":{"state":{"desired":null},"metadata":{},"version":13,"timestamp":1700000100500}}`,
		},
		"acknowledgement with a report": {
			stored: stored, sent: `{"type":"update","state":{"reported":{"state":"open"},"desired":null},"version":12,"clientToken":"t"}`,
			want: `{"type":"update","result":0,"timestamp":1700000100,"clientToken":"t","payload":{"state":{"desired":null,"reported":{"state":"open"}},` +
				`"metadata":{"reported":{"state":` + new + `}},"version":13,"timestamp":1700000100500}}`,
		},
		"empty report": {
			stored: stored, sent: `{"type":"update","state":{"reported":{}}}`,
			want: `{"type":"update","result":0,"timestamp":1700000100,"payload":{"state":{"reported":{}},"metadata":{"reported":{}},"version":13,"timestamp":1700000100500}}`,
		},
		"another version: the whole shadow": {
			stored: stored, sent: `{"type":"update","state":{"reported":{"state":"open"}},"version":11,"clientToken":"t"}`,
			want: `{"type":"update","result":5005,"timestamp":1700000100,"clientToken":"t","payload":` + full + `}`,
		},
		"long numbers keep their digits": {
			sent: `{"type":"update","state":{"reported":{"n":12345678901234567890.10}},"clientToken":1e400}`,
			want: `{"type":"update","result":0,"timestamp":1700000100,"clientToken":1e400,"payload":{"state":{"reported":{"n":12345678901234567890.10}},` +
				`"metadata":{"reported":{"n":` + new + `}},"version":1,"timestamp":1700000100500}}`,
		},
		"no JSON":       {sent: `{`, want: `{"result":5004,"timestamp":1700000100}`},
		"no type":       {sent: `{"clientToken":"t"}`, want: `{"result":5004,"timestamp":1700000100,"clientToken":"t"}`},
		"duplicate key": {sent: `{"type":"update","clientToken":"t","state":{"reported":{"a":1,"a":1}}}`, want: `{"type":"update","result":5003,"timestamp":1700000100,"clientToken":"t"}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, string(converse(t, mustParse(t, tt.stored), tt.sent))); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// converse answers a message as a service does.
func converse(t testing.TB, doc *Document, sent string) []byte {
	t.Helper()
	m, err := ParseMessage([]byte(sent))
	if err == nil && m.Type == TypeGet {
		return AnswerGet(m, doc, now/1000)
	}
	if err == nil {
		err = doc.Update(m.Update, time.UnixMilli(now))
	}
	switch {
	case err == nil:
		return AnswerUpdate(m, doc, now/1000)
	case errors.Is(err, ErrVersion):
		return AnswerVersion(m, doc, now/1000)
	default:
		return AnswerError(m, ResultOf(err), now/1000)
	}
}

func TestResultOf(t *testing.T) {
	for err, want := range map[error]Result{
		nil: 0, ErrTooDeep: 5002, ErrIllegalKey: 5003, ErrIllegalNode: 5003, ErrNotJSON: 5004, ErrNotObject: 5004,
		ErrMessage: 5004, ErrVersion: 5005, ErrTooLarge: 5006, errors.New("the store is away"): 5100,
	} {
		wrapped := err
		if err != nil {
			wrapped = fmt.Errorf("doing something: %w", err)
		}
		if got := ResultOf(wrapped); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}
