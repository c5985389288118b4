package qcloud

import (
	"net"
	"slices"
	"strconv"
	"time"

	"k8s.io/utils/clock"
)

// Defaults of [Options].
const (
	// DefaultWindow is how far a caller's clock may differ from the server's.
	DefaultWindow = 5 * time.Minute
	// DefaultMaxNonces is enough for 100 calls a second of one SecretId over twice
	// the default window.
	DefaultMaxNonces = 1 << 16
	// DefaultService is the service in the scope of a TC3 signature.
	DefaultService = "iotcloud"
)

// DefaultHosts returns the hosts that clients of V2 and V3 believe they call, and
// sign, wherever they really connect to.
func DefaultHosts() []string {
	return []string{"iotcloud.api.qcloud.com", "iotcloud.tencentcloudapi.com"}
}

// Credentials finds the key that belongs to a SecretId.
type Credentials interface {
	// Lookup returns the key and the account of a SecretId; ok is false if it is not
	// known, or not unique. It must not block and may be called concurrently.
	Lookup(secretID string) (secretKey, account string, ok bool)
}

// Limiter bounds the rate of calls.
type Limiter interface {
	// Allow reports whether a call of the SecretId may go on, and counts it. It may
	// be called concurrently and must not block.
	Allow(secretID string) bool
}

// Options are the settings of a [Verifier]. The zero value of each stands for its
// default.
type Options struct {
	// Hosts are the hosts that a call may be signed for, tried in this order, besides
	// the Host of the request; the default is [DefaultHosts].
	Hosts []string
	// Service is the service in the scope of a TC3 signature ([DefaultService]).
	Service string
	// Window is how far a Timestamp may differ from the clock, either way, in whole
	// seconds ([DefaultWindow]).
	Window time.Duration
	// MaxNonces is how many calls of one SecretId are remembered to recognise a
	// replay ([DefaultMaxNonces]). See [Verifier].
	MaxNonces int
	// Limiter is asked about calls whose signature is good and that are no replay,
	// so that nobody uses up the rate of another. The default is no limit.
	Limiter Limiter
}

// Caller is who makes a call.
type Caller struct {
	// SecretID names the credentials that were used.
	SecretID string
	// Account is the account they belong to.
	Account string
}

// Verifier decides whether a call comes from whom it says. It remembers SecretId,
// Timestamp and Nonce of the calls it has accepted for as long as the Timestamp
// is accepted. Only calls with a good signature are remembered, and for each
// SecretId at most MaxNonces: then further calls of this SecretId, and of no
// other, are refused as RateLimited until the oldest have expired. To forget one
// that still counts would let it be replayed; to share one memory would let an
// account shut out the others. So memory is bounded by the number of
// credentials, about 1.5 MB for each that makes 100 calls a second.
//
// A call is remembered by the process that saw it, until it ends. A TC3 signature
// has no Nonce, and two equal calls within a second have equal signatures, so
// those are not recognised.
//
// A Verifier may be used concurrently.
type Verifier struct {
	credentials Credentials
	clock       clock.PassiveClock
	options     Options
	seen        *nonces
}

// NewVerifier returns a Verifier that finds keys in credentials and the time on clock.
func NewVerifier(credentials Credentials, clock clock.PassiveClock, options Options) *Verifier {
	if options.Hosts == nil {
		options.Hosts = DefaultHosts()
	}
	if options.Service == "" {
		options.Service = DefaultService
	}
	if options.Window == 0 {
		options.Window = DefaultWindow
	}
	if options.MaxNonces == 0 {
		options.MaxNonces = DefaultMaxNonces
	}
	return &Verifier{credentials: credentials, clock: clock, options: options, seen: newNonces(options.MaxNonces)}
}

// Verify returns who makes the call. Errors are of kind Token, MissingParameter,
// InvalidParameter (Timestamp or Nonce), SecretIDNotFound, SignatureFailure,
// Expired, RateLimited and Replay.
//
// The order matters: only who has the key learns whether a call is too old or was
// seen before, uses up a rate, and makes the server remember anything.
func (v *Verifier) Verify(call *Call) (Caller, error) {
	if call.SecretID == "" {
		return Caller{}, Errorf(KindSignatureFailure, "SecretId", "is missing")
	}
	if call.authorization == nil && call.signature == "" {
		return Caller{}, Errorf(KindSignatureFailure, "Signature", "is missing")
	}
	if call.token != "" {
		return Caller{}, Errorf(KindToken, "Token", "temporary credentials are not supported")
	}
	timestamp, err := parseCommon(call.timestamp, 63)
	if err != nil {
		return Caller{}, err
	}
	var nonce uint64
	if call.authorization == nil {
		if nonce, err = parseCommon(parameter{"Nonce", call.nonce}, 64); err != nil {
			return Caller{}, err
		}
	}
	key, account, ok := v.credentials.Lookup(call.SecretID)
	if !ok {
		return Caller{}, Errorf(KindSecretIDNotFound, "SecretId", "is not known")
	}
	sent := int64(timestamp) //nolint:gosec // parsed as 63 bits
	if call.authorization != nil {
		err = call.verifyTC3(key, v.options.Service, v.hosts(call), sent)
	} else {
		err = call.verifyForm(key, v.hosts(call))
	}
	if err != nil {
		return Caller{}, err
	}
	if err := v.admit(call, sent, nonce); err != nil {
		return Caller{}, err
	}
	return Caller{SecretID: call.SecretID, Account: account}, nil
}

// admit applies what depends on the time.
func (v *Verifier) admit(call *Call, sent int64, nonce uint64) error {
	now, window := v.clock.Now().Unix(), int64(v.options.Window/time.Second)
	oldest := now - window
	if sent < oldest || sent > now+window {
		return Errorf(KindExpired, call.timestamp.name, "must be within %d seconds of the server's time, %d", window, now)
	}
	allow := func() error {
		if v.options.Limiter != nil && !v.options.Limiter.Allow(call.SecretID) {
			return Errorf(KindRateLimited, "", "slow down")
		}
		return nil
	}
	if call.authorization != nil {
		return allow()
	}
	return v.seen.add(call.SecretID, sent, nonce, oldest, allow)
}

// hosts returns the hosts that the call may be signed for.
func (v *Verifier) hosts(call *Call) []string {
	hosts := slices.Clone(v.options.Hosts)
	candidates := []string{call.host}
	// Some clients sign the name alone.
	if name, _, err := net.SplitHostPort(call.host); err == nil {
		candidates = append(candidates, name)
	}
	for _, host := range candidates {
		if host != "" && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// parseCommon reads a common parameter that is a number without a sign.
func parseCommon(p parameter, bits int) (uint64, error) {
	if p.text == "" {
		return 0, Errorf(KindMissingParameter, p.name, "is missing")
	}
	n, err := strconv.ParseUint(p.text, 10, bits)
	if err != nil {
		return 0, Errorf(KindInvalidParameter, p.name, "must be a number")
	}
	return n, nil
}
