package qcloud

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every kind in both versions, with a detail. The texts are those of the
// documents, character for character.
func TestWriteError(t *testing.T) {
	for _, tc := range []struct {
		kind     Kind
		wantV2   string
		wantV3   string
		wantCode string
	}{
		{KindTaskNotExist, failureV2JSON(5000, "TaskNotExist", "（10001）任务不存在: id: why"), "ResourceNotFound.TaskNotExist", "10001"},
		{KindInvalidValue, failureV2JSON(4000, "InvalidParameterValue", "（10002）参数非法: id: why"), "InvalidParameterValue", "10002"},
		{KindAlreadyStarted, failureV2JSON(4000, "TaskAlreadyStarted", "（10003）任务已经开始: id: why"), "FailedOperation.AsyncTaskAlreadyStarted", "10003"},
		{KindProductNotExist, failureV2JSON(5000, "ProductNotExist", "（10004）产品不存在: id: why"), "ResourceNotFound.ProductNotExist", "10004"},
		{KindLimitExceeded, failureV2JSON(4400, "PendingOrProcessingTasksExceedLimit", "（10005）等待和处理中的任务数过多: id: why"), "LimitExceeded.PengingOrProcessingTasksExceedLimit", "10005"},
		{KindMissingParameter, failureV2JSON(4000, "InvalidParameter", "（10101）请求参数非法: id: why"), "MissingParameter", "10101"},
		{KindInvalidParameter, failureV2JSON(4000, "InvalidParameter", "（10101）请求参数非法: id: why"), "InvalidParameter", "10101"},
		{KindBadRequest, failureV2JSON(4000, "BadRequest", "the request cannot be read: id: why"), "InvalidParameter", "4000"},
		{KindTooLarge, failureV2JSON(4000, "RequestTooLarge", "the request is too large: id: why"), "RequestSizeLimitExceeded", "4000"},
		{KindUnsupportedProtocol, failureV2JSON(4000, "UnsupportedProtocol", "the protocol is not supported: id: why"), "UnsupportedProtocol", "4000"},
		{KindUnknownAction, failureV2JSON(4000, "InvalidAction", "there is no such action: id: why"), "InvalidAction", "4000"},
		{KindNoSuchVersion, failureV2JSON(4000, "NoSuchVersion", "there is no such version: id: why"), "NoSuchVersion", "4000"},
		{KindSignatureFailure, failureV2JSON(4100, "SignatureFailure", "authentication failed: id: why"), "AuthFailure.SignatureFailure", "4100"},
		{KindSecretIDNotFound, failureV2JSON(4104, "SecretIdNotFound", "there is no such SecretId: id: why"), "AuthFailure.SecretIdNotFound", "4104"},
		{KindToken, failureV2JSON(4105, "TokenFailure", "tokens are not supported: id: why"), "AuthFailure.TokenFailure", "4105"},
		{KindExpired, failureV2JSON(4200, "SignatureExpire", "the request has expired: id: why"), "AuthFailure.SignatureExpire", "4200"},
		{KindRateLimited, failureV2JSON(4400, "RequestLimitExceeded", "too many requests: id: why"), "RequestLimitExceeded", "4400"},
		{KindDeviceNotExist, failureV2JSON(5000, "ProductOrDeviceNotExist", "（5102）用户不存在此产品或设备: id: why"), "ResourceNotFound.ProductOrDeviceNotExist", "5102"},
		{KindStateIncomplete, failureV2JSON(4000, "ParamIncomplete", "（5000）请求中缺少关键字段信息: id: why"), "InvalidParameterValue.ParamIncomplete", "5000"},
		{KindStateTooDeep, failureV2JSON(4000, "JSONLevelExceedLimit", "（5002）State JSON对象的层数超过了限制: id: why"), "InvalidParameterValue.JSONLevelExceedLimit", "5002"},
		{KindStateIllegalNode, failureV2JSON(4000, "JSONHasInvalidNode", "（5003）State JSON对象中包含非法节点: id: why"), "InvalidParameterValue.JSONHasInvalidNode", "5003"},
		{KindStateNotJSON, failureV2JSON(4000, "InvalidJSON", "（5004）State不是合法的JSON对象: id: why"), "InvalidParameterValue.InvalidJSON", "5004"},
		{KindVersionMismatch, failureV2JSON(4000, "UpdateVersionNotMatch", "（5005）更新版本不匹配: id: why"), "FailedOperation.UpdateVersionNotMatch", "5005"},
		{KindStateTooLarge, failureV2JSON(4000, "JSONSizeExceedLimit", "（5006）State JSON对象超过大小限制: id: why"), "InvalidParameterValue.JSONSizeExceedLimit", "5006"},
		{KindIllegalTopic, failureV2JSON(4000, "InvalidTopicName", "（7000）消息topic非法: id: why"), "FailedOperation.InvalidTopicName", "7000"},
		{KindPayloadTooLong, failureV2JSON(4000, "InvalidMsgLen", "（7002）消息长度非法: id: why"), "FailedOperation.InvalidMsgLen", "7002"},
		{KindReplay, failureV2JSON(4500, "ReplayAttack", "the request was seen before: id: why"), "AuthFailure.SignatureFailure", "4500"},
	} {
		t.Run(tc.kind.String(), func(t *testing.T) {
			err := fmt.Errorf("wrapped: %w", Errorf(tc.kind, "id", "%s", "why"))
			wantAnswer(t, written(t, V2, err), tc.wantV2)
			wantAnswer(t, written(t, V3, err), failureV3JSON(tc.wantV3, "id: why"))
			if got := AsError(err).Code(V2); got != tc.wantCode {
				t.Errorf("Code(V2) = %s, want %s", got, tc.wantCode)
			}
			if got := AsError(err).Code(V3); got != tc.wantV3 {
				t.Errorf("Code(V3) = %s, want %s", got, tc.wantV3)
			}
		})
	}
	for k := range kinds {
		if kinds[k].v3 == "" || kinds[k].text == "" || kinds[k].desc == "" || kinds[k].public == 0 {
			t.Errorf("kind %d lacks a code", k)
		}
	}
}

func written(t *testing.T, v Version, err error) string {
	t.Helper()
	w := httptest.NewRecorder()
	if err := WriteError(w, v, "b5b41468-520d-4192-b42f-595cc34b6c1c", err); err != nil {
		t.Fatal(err)
	}
	if got, want := w.Header().Get("Content-Type"), contentType(v); got != want {
		t.Errorf("Content-Type %q, want %q", got, want)
	}
	return w.Body.String()
}

// Kinds that have other module codes in calls about a device. The rest of them, and
// all other kinds, are as they are in calls about tasks.
func TestWriteErrorOfDevices(t *testing.T) {
	const tasks, shadows, messages = "CreateTask", "GetDeviceShadow DescribeDeviceShadow UpdateDeviceShadow", "Publish PublishMessage"
	for _, tc := range []struct {
		actions string
		kind    Kind
		want    string
		code    string
	}{
		{tasks, KindInvalidValue, "（10002）参数非法: id: why", "10002"},
		{"", KindMissingParameter, "（10101）请求参数非法: id: why", "10101"},
		{shadows, KindMissingParameter, "（5000）请求中缺少关键字段信息: id: why", "5000"},
		{shadows, KindInvalidParameter, "（5101）请求参数非法: id: why", "5101"},
		{shadows, KindInvalidValue, "（5101）请求参数非法: id: why", "5101"},
		{shadows, KindDeviceNotExist, "（5102）用户不存在此产品或设备: id: why", "5102"},
		{shadows, KindInternal, "（5100）内部服务器错误，请联系技术人员", "5100"},
		{shadows, 200, "（5100）内部服务器错误，请联系技术人员", "5100"},
		{shadows, KindRateLimited, "too many requests: id: why", "4400"},
		{messages, KindMissingParameter, "（7101）请求参数非法: id: why", "7101"},
		{messages, KindInvalidParameter, "（7101）请求参数非法: id: why", "7101"},
		{messages, KindInvalidValue, "（7101）请求参数非法: id: why", "7101"},
		{messages, KindDeviceNotExist, "（7102）用户不存在此产品或设备: id: why", "7102"},
		{messages, KindInternal, "（7001）内部服务器错误，请联系技术人员", "7001"},
	} {
		for action := range strings.SplitSeq(tc.actions, " ") {
			plain := Errorf(tc.kind, "id", "%s", "why")
			err := plain.In(action)
			if got := err.Message(V2); got != tc.want {
				t.Errorf("%s, %s: message %q, want %q", action, tc.kind, got, tc.want)
			}
			if got := err.Code(V2); got != tc.code {
				t.Errorf("%s, %s: code %s, want %s", action, tc.kind, got, tc.code)
			}
			if got, want := err.Code(V3), plain.Code(V3); got != want {
				t.Errorf("%s, %s: code %s in V3, want %s", action, tc.kind, got, want)
			}
			if got, want := err.Message(V3), plain.Message(V3); got != want {
				t.Errorf("%s, %s: message %q in V3, want %q", action, tc.kind, got, want)
			}
		}
	}
}

// Data stands beside the error in V2, and nowhere in V3.
func TestWriteErrorWithData(t *testing.T) {
	err := Errorf(KindVersionMismatch, "version", "%s", "why")
	err.Data = []byte(`{"n":12345678901234567890}`)
	if got, want := written(t, V2, err), `{"data":{"n":12345678901234567890},"message":"（5005）更新版本不匹配: version: why","codeDesc":"UpdateVersionNotMatch","code":4000}`+"\n"; got != want {
		t.Errorf("answer %s, want %s", got, want)
	}
	wantAnswer(t, written(t, V3, err), failureV3JSON("FailedOperation.UpdateVersionNotMatch", "version: why"))
}

// An internal error says nothing of what went wrong inside.
func TestWriteInternalError(t *testing.T) {
	for _, err := range []error{
		errors.New("secret of the house"),
		&Error{Kind: KindInternal, Parameter: "secret", Detail: "secret", Err: errors.New("secret")},
		&Error{Kind: 200, Detail: "secret"},
	} {
		wantAnswer(t, written(t, V2, err), failureV2JSON(6000, "InternalError", "（10100）内部服务器错误，请联系技术人员"))
		wantAnswer(t, written(t, V3, err), failureV3JSON("InternalError", "the call could not be carried out, through no fault of the caller"))
	}
}

func TestErrorWithoutDetail(t *testing.T) {
	err := &Error{Kind: KindLimitExceeded}
	wantAnswer(t, written(t, V2, err), failureV2JSON(4400, "PendingOrProcessingTasksExceedLimit", "（10005）等待和处理中的任务数过多"))
	wantAnswer(t, written(t, V3, err), failureV3JSON("LimitExceeded.PengingOrProcessingTasksExceedLimit", "too many tasks are waiting or processing"))
	if got, want := (&Error{Kind: KindExpired}).Message(V3), "the request has expired"; got != want {
		t.Errorf("Message = %q, want %q", got, want)
	}
	long := (&Error{Kind: KindInvalidValue, Detail: strings.Repeat("长", 5000)}).Message(V3)
	if got, want := len([]rune(long)), 1025; got != want {
		t.Errorf("a long detail has %d characters, want %d", got, want)
	}
}

func TestErrorTellsTheCauseToTheLog(t *testing.T) {
	cause := errors.New("cause")
	for _, tc := range []struct {
		err  *Error
		want string
	}{
		{&Error{Kind: KindInternal, Err: cause}, "InternalError: cause"},
		{&Error{Kind: KindProductNotExist, Parameter: "productID", Detail: "no such product", Err: cause}, "ProductNotExist: productID: no such product: cause"},
		{Errorf(KindInvalidValue, "id", "bad: %w", cause), "InvalidParameterValue: id: bad: cause"},
	} {
		if got := tc.err.Error(); got != tc.want {
			t.Errorf("Error() = %q, want %q", got, tc.want)
		}
		if !errors.Is(tc.err, cause) {
			t.Errorf("%v does not wrap its cause", tc.err)
		}
	}
}

// Whole bodies: the order of the fields and the types are those of the documents.
func TestWriteResult(t *testing.T) {
	task := Task{
		Type: "UpdateShadow", ID: "5ad5aa513332ea4cb86e9ad5", ProductID: "ABCDE12345", Status: StatusFailed,
		CreateTime: 1, UpdateTime: 2, DoneTime: 3, ScheduleTime: 4, RetCode: 10002, ErrMsg: "a < b & 状态",
		Percent: 50, AllDeviceCnt: 2, DoneDeviceCnt: 1,
	}
	for _, tc := range []struct {
		name           string
		result         Result
		wantV2, wantV3 string
	}{
		{
			"CreateTask",
			CreateTaskResult{TaskID: "5ad5aa513332ea4cb86e9ad5"},
			`{"taskId":"5ad5aa513332ea4cb86e9ad5","message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"TaskId":"5ad5aa513332ea4cb86e9ad5","RequestId":"r"}}`,
		},
		{
			"DescribeTask",
			DescribeTaskResult{Task: task},
			`{"type":"UpdateShadow","id":"5ad5aa513332ea4cb86e9ad5","productID":"ABCDE12345","status":4,"createTime":1,"updateTime":2,"doneTime":3,"scheduleTime":4,"retCode":10002,"errMsg":"a < b & 状态","percent":50,"allDeviceCnt":2,"doneDeviceCnt":1,"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"Type":"UpdateShadow","Id":"5ad5aa513332ea4cb86e9ad5","ProductId":"ABCDE12345","Status":4,"CreateTime":1,"UpdateTime":2,"DoneTime":3,"ScheduleTime":4,"RetCode":10002,"ErrMsg":"a < b & 状态","Percent":50,"AllDeviceCnt":2,"DoneDeviceCnt":1,"RequestId":"r"}}`,
		},
		{
			"ListTasks",
			ListTasksResult{Tasks: []Task{task}, Total: 7},
			`{"tasks":[{"type":"UpdateShadow","id":"5ad5aa513332ea4cb86e9ad5","productID":"ABCDE12345","status":4,"createTime":1,"updateTime":2,"retCode":10002,"errMsg":"a < b & 状态"}],"taskTotalCount":7,"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"TotalCount":7,"Tasks":[{"Type":"UpdateShadow","Id":"5ad5aa513332ea4cb86e9ad5","ProductId":"ABCDE12345","Status":4,"CreateTime":1,"UpdateTime":2,"RetCode":10002,"ErrMsg":"a < b & 状态"}],"RequestId":"r"}}`,
		},
		{
			"no tasks",
			ListTasksResult{},
			`{"tasks":[],"taskTotalCount":0,"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"TotalCount":0,"Tasks":[],"RequestId":"r"}}`,
		},
		{
			"CancelTask",
			CancelTaskResult{},
			`{"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"RequestId":"r"}}`,
		},
		{
			"GetDeviceShadow",
			ShadowResult{Data: []byte(`{"type":"get","payload":{"n":12345678901234567890.10,"s":"<&>"}}`)},
			`{"data":{"type":"get","payload":{"n":12345678901234567890.10,"s":"<&>"}},"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"Data":"{\"type\":\"get\",\"payload\":{\"n\":12345678901234567890.10,\"s\":\"<&>\"}}","RequestId":"r"}}`,
		},
		{
			"Publish",
			PublishResult{},
			`{"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"RequestId":"r"}}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for version, want := range map[Version]string{V2: tc.wantV2, V3: tc.wantV3} {
				w := httptest.NewRecorder()
				if err := WriteResult(w, version, "r", tc.result); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want+"\n", w.Body.String()); diff != "" {
					t.Errorf("%v (-want +got):\n%s", version, diff)
				}
			}
		})
	}
}
