package qcloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Kind says what was wrong with a call. Each kind has its codes in both versions
// of the API.
type Kind uint8

// The kinds of errors. Internal is the zero value: what nobody classified is a
// fault of the server.
const (
	// KindInternal : the call could not be carried out for no fault of the caller's.
	KindInternal Kind = iota
	// KindTaskNotExist : the account has no task with this ID.
	KindTaskNotExist
	// KindInvalidValue : a parameter has the right type and a value that is not
	// legal: out of range, not a regular expression, not a JSON object in a string.
	KindInvalidValue
	// KindAlreadyStarted : CancelTask on a task that has been scheduled.
	KindAlreadyStarted
	// KindProductNotExist : the account has no product with this ID.
	KindProductNotExist
	// KindLimitExceeded : the account has as many waiting and processing tasks as
	// it may have.
	KindLimitExceeded
	// KindMissingParameter : a required parameter is not there.
	KindMissingParameter
	// KindInvalidParameter : a parameter is of the wrong type, given twice, or not
	// text in UTF-8.
	KindInvalidParameter
	// KindBadRequest : the parameters of the call cannot be read at all.
	KindBadRequest
	// KindTooLarge : the call is larger than [MaxBytes] or has more than
	// [MaxParameters] parameters.
	KindTooLarge
	// KindUnsupportedProtocol : the method is neither GET nor POST, or the body is of
	// a type that the API does not take.
	KindUnsupportedProtocol
	// KindUnknownAction : the version has no such action.
	KindUnknownAction
	// KindNoSuchVersion : V3 was called with another Version than [VersionV3].
	KindNoSuchVersion
	// KindSignatureFailure : the signature is missing or wrong, or does not cover a
	// parameter of the call.
	KindSignatureFailure
	// KindSecretIDNotFound : there are no credentials with this SecretId.
	KindSecretIDNotFound
	// KindToken : the call carries a Token; temporary credentials are not supported.
	KindToken
	// KindExpired : the Timestamp is too far from the server's clock.
	KindExpired
	// KindReplay : a call with this SecretId, Timestamp and Nonce was seen before.
	KindReplay
	// KindRateLimited : the SecretId makes more calls than it may.
	KindRateLimited
	// KindDeviceNotExist : the account's product has no device of this name.
	KindDeviceNotExist
	// KindStateIncomplete : a state without the member "desired".
	KindStateIncomplete
	// KindStateTooDeep : a shadow would be nested deeper than it may be.
	KindStateTooDeep
	// KindStateIllegalNode : a key or a value that cannot stand where it does.
	KindStateIllegalNode
	// KindStateNotJSON : a state that is no JSON object.
	KindStateNotJSON
	// KindVersionMismatch : the update is made for another version of the shadow.
	KindVersionMismatch
	// KindStateTooLarge : a shadow would be larger than it may be.
	KindStateTooLarge
	// KindIllegalTopic : the topic is none of the device's.
	KindIllegalTopic
	// KindPayloadTooLong : the payload of a message is longer than it may be.
	KindPayloadTooLong
)

// family is a part of the API that has module codes of its own.
type family uint8

const (
	familyTasks family = iota // also where the action is not known
	familyShadows
	familyMessages
)

func familyOf(action string) family {
	switch action {
	case ActionGetDeviceShadow, ActionDescribeDeviceShadow, ActionUpdateDeviceShadow:
		return familyShadows
	case ActionPublish, ActionPublishMessage:
		return familyMessages
	default:
		return familyTasks
	}
}

// codes are how a kind is told to callers.
type codes struct {
	module string // the module code of V2; "" where there is none
	text   string // the module's fixed text, exactly as the documents write it; without a module code a plain one
	public int    // the public code of V2
	desc   string // codeDesc of V2
	v3     string // Code of V3
	// english is the Message of V3 where there is no detail; "" for text, which is
	// English where there is no module code.
	english string
}

// kinds has the codes of each kind in the family where it is at home, which is
// that of tasks unless the kind names something else.
var kinds = [...]codes{
	KindInternal:            {"10100", textInternal, 6000, "InternalError", "InternalError", "the call could not be carried out, through no fault of the caller"},
	KindTaskNotExist:        {"10001", "任务不存在", 5000, "TaskNotExist", "ResourceNotFound.TaskNotExist", "there is no such task"},
	KindInvalidValue:        {"10002", "参数非法", 4000, "InvalidParameterValue", "InvalidParameterValue", "a parameter has an illegal value"},
	KindAlreadyStarted:      {"10003", "任务已经开始", 4000, "TaskAlreadyStarted", "FailedOperation.AsyncTaskAlreadyStarted", "the task has been started"},
	KindProductNotExist:     {"10004", "产品不存在", 5000, "ProductNotExist", "ResourceNotFound.ProductNotExist", "there is no such product"},
	KindMissingParameter:    {"10101", textBadRequest, 4000, "InvalidParameter", "MissingParameter", "a parameter is missing"},
	KindInvalidParameter:    {"10101", textBadRequest, 4000, "InvalidParameter", "InvalidParameter", "a parameter has the wrong type"},
	KindBadRequest:          {"", "the request cannot be read", 4000, "BadRequest", "InvalidParameter", ""},
	KindTooLarge:            {"", "the request is too large", 4000, "RequestTooLarge", "RequestSizeLimitExceeded", ""},
	KindUnsupportedProtocol: {"", "the protocol is not supported", 4000, "UnsupportedProtocol", "UnsupportedProtocol", ""},
	KindUnknownAction:       {"", "there is no such action", 4000, "InvalidAction", "InvalidAction", ""},
	KindNoSuchVersion:       {"", "there is no such version", 4000, "NoSuchVersion", "NoSuchVersion", ""},
	KindSignatureFailure:    {"", "authentication failed", 4100, "SignatureFailure", "AuthFailure.SignatureFailure", ""},
	KindSecretIDNotFound:    {"", "there is no such SecretId", 4104, "SecretIdNotFound", "AuthFailure.SecretIdNotFound", ""},
	KindToken:               {"", "tokens are not supported", 4105, "TokenFailure", "AuthFailure.TokenFailure", ""},
	KindExpired:             {"", "the request has expired", 4200, "SignatureExpire", "AuthFailure.SignatureExpire", ""},
	KindReplay:              {"", "the request was seen before", 4500, "ReplayAttack", "AuthFailure.SignatureFailure", ""},
	KindRateLimited:         {"", "too many requests", 4400, "RequestLimitExceeded", "RequestLimitExceeded", ""},
	// Clients compare the V3 code, so its spelling stays.
	KindLimitExceeded: {"10005", "等待和处理中的任务数过多", 4400, "PendingOrProcessingTasksExceedLimit", "LimitExceeded.PengingOrProcessingTasksExceedLimit", "too many tasks are waiting or processing"},

	KindDeviceNotExist:   {"5102", textNoDevice, 5000, "ProductOrDeviceNotExist", "ResourceNotFound.ProductOrDeviceNotExist", "there is no such product or device"},
	KindStateIncomplete:  {"5000", textIncomplete, 4000, "ParamIncomplete", "InvalidParameterValue.ParamIncomplete", "something is missing in the state"},
	KindStateTooDeep:     {"5002", "State JSON对象的层数超过了限制", 4000, "JSONLevelExceedLimit", "InvalidParameterValue.JSONLevelExceedLimit", "the state has too many levels"},
	KindStateIllegalNode: {"5003", "State JSON对象中包含非法节点", 4000, "JSONHasInvalidNode", "InvalidParameterValue.JSONHasInvalidNode", "the state has an illegal key or value"},
	KindStateNotJSON:     {"5004", "State不是合法的JSON对象", 4000, "InvalidJSON", "InvalidParameterValue.InvalidJSON", "the state is no JSON object"},
	KindVersionMismatch:  {"5005", "更新版本不匹配", 4000, "UpdateVersionNotMatch", "FailedOperation.UpdateVersionNotMatch", "the shadow has another version"},
	KindStateTooLarge:    {"5006", "State JSON对象超过大小限制", 4000, "JSONSizeExceedLimit", "InvalidParameterValue.JSONSizeExceedLimit", "the state is too large"},
	KindIllegalTopic:     {"7000", "消息topic非法", 4000, "InvalidTopicName", "FailedOperation.InvalidTopicName", "the topic is none of the device's"},
	KindPayloadTooLong:   {"7002", "消息长度非法", 4000, "InvalidMsgLen", "FailedOperation.InvalidMsgLen", "the payload is too long"},
}

// Texts of several codes.
const (
	textInternal   = "内部服务器错误，请联系技术人员"
	textBadRequest = "请求参数非法"
	textNoDevice   = "用户不存在此产品或设备"
	textIncomplete = "请求中缺少关键字段信息"
)

// modules has, for each family, the module codes that kinds of other families have
// there: a kind that stands here is told with this code and text, and otherwise as
// in kinds.
var modules = map[family]map[Kind]struct{ code, text string }{
	familyShadows: {
		KindInternal:         {"5100", textInternal},
		KindMissingParameter: {"5000", textIncomplete},
		KindInvalidParameter: {"5101", textBadRequest},
		KindInvalidValue:     {"5101", textBadRequest},
	},
	familyMessages: {
		KindInternal:         {"7001", textInternal},
		KindMissingParameter: {"7101", textBadRequest},
		KindInvalidParameter: {"7101", textBadRequest},
		KindInvalidValue:     {"7101", textBadRequest},
		KindDeviceNotExist:   {"7102", textNoDevice},
	},
}

// known returns the kind itself, or KindInternal for one that there is not.
func (k Kind) known() Kind {
	if int(k) >= len(kinds) {
		return KindInternal
	}
	return k
}

// String returns the kind's code in V3, without its class.
func (k Kind) String() string {
	code := kinds[k.known()].v3
	return code[strings.IndexByte(code, '.')+1:]
}

// Error says why a call is refused.
type Error struct {
	// Kind says what is wrong.
	Kind Kind
	// Parameter is the parameter that is wrong, spelled as in the version of the
	// call; empty where none is.
	Parameter string
	// Detail tells the caller in English what is wrong. For KindInternal it is not
	// told.
	Detail string
	// Data is told beside the error in V2, as "data"; nil for none. V3 has no place
	// for it.
	Data json.RawMessage
	// Err is the cause, for the server's log; it may be nil, and callers never see it.
	Err error

	family family
}

// Errorf returns an Error about a parameter, or about none if it is empty, with a
// detail for the caller. An error among the arguments of a %w becomes the cause.
func Errorf(kind Kind, parameter, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Parameter: parameter, Detail: err.Error(), Err: errors.Unwrap(err)}
}

// AsError returns the Error that err is or wraps; any other error becomes the
// cause of one of KindInternal.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: KindInternal, Err: err}
}

// In returns the error as one of a call of this action: actions have module codes of
// their own for some kinds. Until then it is told as an error of a task.
func (e *Error) In(action string) *Error {
	in := *e
	in.family = familyOf(action)
	return &in
}

func (e *Error) codes() codes {
	kind := e.Kind.known()
	c := kinds[kind]
	if module, ok := modules[e.family][kind]; ok {
		c.module, c.text = module.code, module.text
	}
	return c
}

// Error returns kind, parameter, detail and cause, for logs.
func (e *Error) Error() string {
	parts := []string{e.Kind.String()}
	if told := e.told(); told != "" {
		parts = append(parts, told)
	}
	if e.Err != nil && !strings.Contains(e.Detail, e.Err.Error()) {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Code returns the most telling code of the error in a version of the API: in V2
// the module code, or the public code where there is none; in V3 Code. There are
// few, so it can label a metric.
func (e *Error) Code(v Version) string {
	c := e.codes()
	switch {
	case v == V3:
		return c.v3
	case c.module != "":
		return c.module
	default:
		return strconv.Itoa(c.public)
	}
}

// Message returns what the caller reads: in V2 "（module code）fixed text: detail",
// or "text: detail" where there is no module code; in V3 the detail alone, or
// the kind in English. A detail is cut after 1024 characters.
func (e *Error) Message(v Version) string {
	c := e.codes()
	detail := e.told()
	if e.Kind.known() == KindInternal {
		// What went wrong inside is for the log: it may name what is not the caller's.
		detail = ""
	}
	text := c.text
	switch {
	case v == V3 && detail != "":
		return detail
	case v == V3 && c.english != "":
		return c.english
	case v == V2 && c.module != "":
		text = "（" + c.module + "）" + text
	}
	if detail == "" {
		return text
	}
	return text + ": " + detail
}

// told returns parameter and detail, cut to a length that fits an answer.
func (e *Error) told() string {
	detail := e.Detail
	if e.Parameter != "" {
		detail = strings.TrimSuffix(e.Parameter+": "+detail, ": ")
	}
	const most = 1024
	if len(detail) <= most {
		return detail
	}
	if runes := []rune(detail); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return detail
}
